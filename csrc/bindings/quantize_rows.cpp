// Threads for `quantize_rows` and `dequantize_rows`. Arguments were checked in pyfeat/ops.
#include "../cpu/quantize_rows.h"

#include <algorithm>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kNumbersOfChunk = 1 << 16;
constexpr double kNumbersOfThread = 1 << 17;

// Calls work(first row, rows) for chunks of whole rows.
template <typename Work>
void for_chunks(std::ptrdiff_t n, std::ptrdiff_t d, std::size_t threads, const Work& work) {
  if (n == 0) return;
  const std::ptrdiff_t rows =
      std::max<std::ptrdiff_t>(1, kNumbersOfChunk / std::max<std::ptrdiff_t>(d, 1));
  threads = worthwhile_threads(threads, static_cast<double>(n) * static_cast<double>(d),
                               kNumbersOfThread);
  parallel(static_cast<std::size_t>((n + rows - 1) / rows), threads,
           [&](std::size_t chunk, std::size_t) {
             const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(chunk) * rows;
             work(first, std::min(rows, n - first));
           });
}

void quantize_rows(std::uintptr_t rows, int from, std::ptrdiff_t stride, std::ptrdiff_t n,
                   std::ptrdiff_t d, int to, std::uintptr_t out, std::uintptr_t scales,
                   std::size_t threads) {
  const py::gil_scoped_release unlocked;
  const Item source = static_cast<Item>(from), target = static_cast<Item>(to);
  for_chunks(n, d, threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
    PYFEAT_KERNEL(quantize_rows)
    (reinterpret_cast<const std::uint8_t*>(rows) + first * stride * bytes_of(source), source,
     stride, count, d, target, reinterpret_cast<std::uint8_t*>(out) + first * d * bytes_of(target),
     scales ? reinterpret_cast<float*>(scales) + first : nullptr);
  });
}

void dequantize_rows(std::uintptr_t rows, int from, std::ptrdiff_t stride, std::ptrdiff_t n,
                     std::ptrdiff_t d, std::uintptr_t scales, int to, std::uintptr_t out,
                     std::size_t threads) {
  const py::gil_scoped_release unlocked;
  const Item source = static_cast<Item>(from), target = static_cast<Item>(to);
  for_chunks(n, d, threads, [&](std::ptrdiff_t first, std::ptrdiff_t count) {
    PYFEAT_KERNEL(dequantize_rows)
    (reinterpret_cast<const std::uint8_t*>(rows) + first * stride * bytes_of(source), source,
     stride, count, d, scales ? reinterpret_cast<const float*>(scales) + first : nullptr, target,
     reinterpret_cast<std::uint8_t*>(out) + first * d * bytes_of(target));
  });
}

}  // namespace

void bind_quantize_rows(py::module_& m) {
  m.def("quantize_rows", &quantize_rows, py::arg("rows"), py::arg("source"), py::arg("stride"),
        py::arg("n"), py::arg("d"), py::arg("target"), py::arg("out"), py::arg("scales"),
        py::arg("threads"),
        "Rows at an address in another type; types: 0 float32, 1 float16, 2 bfloat16, 3 int8.");
  m.def("dequantize_rows", &dequantize_rows, py::arg("rows"), py::arg("source"), py::arg("stride"),
        py::arg("n"), py::arg("d"), py::arg("scales"), py::arg("target"), py::arg("out"),
        py::arg("threads"), "The way back of quantize_rows.");
}

}  // namespace pyfeat
