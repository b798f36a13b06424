// Addresses and threads for `gather_rows`. Indices were checked in pyfeat/ops.
#include "../cpu/gather_rows.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::size_t kRowsPerChunk = 512;
constexpr std::size_t kBytesPerThread = 1 << 19;

// Where the rows of a source begin, how far they lie apart in bytes, and their scales or 0.
using SourceRows = std::tuple<std::uintptr_t, std::ptrdiff_t, std::uintptr_t>;

void gather_rows(const std::vector<SourceRows>& sources, std::uintptr_t which, std::uintptr_t rows,
                 std::size_t m, std::ptrdiff_t d, std::ptrdiff_t row_bytes, int item,
                 std::uintptr_t out, std::size_t threads) {
  const py::gil_scoped_release unlocked;
  const auto* from = reinterpret_cast<const std::int64_t*>(which);
  const auto* row = reinterpret_cast<const std::int64_t*>(rows);
  const bool copies = item < 0;
  const bool scaled = !copies && std::get<2>(sources[0]) != 0;
  const std::ptrdiff_t out_bytes = copies ? row_bytes : d * 4;
  const auto run = [&](std::size_t chunk, std::size_t) {
    const std::size_t begin = chunk * kRowsPerChunk, end = std::min(begin + kRowsPerChunk, m);
    const std::uint8_t* addresses[kRowsPerChunk];
    float scales[kRowsPerChunk];
    for (std::size_t i = begin; i < end; ++i) {
      const auto& [base, stride, scale] = sources[static_cast<std::size_t>(from[i])];
      addresses[i - begin] = reinterpret_cast<const std::uint8_t*>(base) + row[i] * stride;
      if (scaled) scales[i - begin] = reinterpret_cast<const float*>(scale)[row[i]];
    }
    const PickedRows picked{addresses, static_cast<std::ptrdiff_t>(end - begin), 0, row_bytes};
    std::uint8_t* to =
        reinterpret_cast<std::uint8_t*>(out) + static_cast<std::ptrdiff_t>(begin) * out_bytes;
    if (copies)
      PYFEAT_KERNEL(copy_rows)(picked, to);
    else
      PYFEAT_KERNEL(widen_rows)(picked, static_cast<Item>(item), d, scaled ? scales : nullptr,
                                reinterpret_cast<float*>(to));
  };
  const double work = static_cast<double>(m) * static_cast<double>(row_bytes + out_bytes);
  parallel((m + kRowsPerChunk - 1) / kRowsPerChunk,
           worthwhile_threads(threads, work, kBytesPerThread), run);
}

}  // namespace

void bind_gather_rows(py::module_& m) {
  m.def("gather_rows", &gather_rows, py::arg("sources"), py::arg("which"), py::arg("rows"),
        py::arg("m"), py::arg("d"), py::arg("row_bytes"), py::arg("item"), py::arg("out"),
        py::arg("threads"),
        "out[i] = row rows[i] of source which[i], all at addresses; a source is (address, bytes\n"
        "from row to row, address of its scales or 0). item: -1 copies bytes, 0 float32, 1 "
        "float16,\n"
        "2 bfloat16, 3 int8 become float32, times the scale of the row.");
}

}  // namespace pyfeat
