// Threads and scratch for `pool`. Arguments were checked in pyfeat/ops.
#include "../cpu/pool.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kNumbersOfChunk = 1 << 16;
constexpr double kNumbersOfThread = 1 << 17;

using Three = std::array<std::ptrdiff_t, 3>;  // items, channels, positions

std::ptrdiff_t bytes_of(Item item) {
  return item == Item::kFloat32 ? 4 : item == Item::kInt8 ? 1 : 2;
}

void pool(std::uintptr_t x, int item, const Three& shape, const Three& strides, int method,
          bool first, double p, bool l2, int to, std::uintptr_t out, std::uintptr_t scales,
          std::size_t threads) {
  const py::gil_scoped_release unlocked;
  const auto [n, channels, positions] = shape;
  if (n == 0) return;
  const PoolPlan plan{static_cast<Pooling>(method), first, p, l2, static_cast<Item>(to)};
  const Item from = static_cast<Item>(item);
  const std::ptrdiff_t width = first ? 2 * channels : channels;
  // From the first number of an item to behind the last number of all.
  const std::ptrdiff_t reach =
      (n - 1) * strides[0] + (channels - 1) * strides[1] + (positions - 1) * strides[2] + 1;
  const std::ptrdiff_t numbers = std::max<std::ptrdiff_t>(channels * positions, 1);
  const std::ptrdiff_t items = std::max<std::ptrdiff_t>(1, kNumbersOfChunk / numbers);
  threads = worthwhile_threads(threads, static_cast<double>(n) * static_cast<double>(numbers),
                               kNumbersOfThread);
  const std::size_t room = pool_scratch(channels);
  const std::unique_ptr<float[]> scratch(new float[room * threads]);
  parallel(static_cast<std::size_t>((n + items - 1) / items), threads,
           [&](std::size_t chunk, std::size_t thread) {
             const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(chunk) * items;
             for (std::ptrdiff_t i = begin; i < std::min(n, begin + items); ++i) {
               const std::ptrdiff_t skipped = i * strides[0];
               const FeatureMap map{
                   reinterpret_cast<const std::uint8_t*>(x) + skipped * bytes_of(from),
                   from,
                   reach - skipped,
                   channels,
                   positions,
                   strides[1],
                   strides[2]};
               PYFEAT_KERNEL(pool)
               (map, plan, scratch.get() + room * thread,
                reinterpret_cast<std::uint8_t*>(out) + i * width * bytes_of(plan.to),
                scales ? reinterpret_cast<float*>(scales) + i : nullptr);
             }
           });
}

}  // namespace

void bind_pool(py::module_& m) {
  m.def("pool", &pool, py::arg("x"), py::arg("item"), py::arg("shape"), py::arg("strides"),
        py::arg("method"), py::arg("first"), py::arg("p"), py::arg("l2"), py::arg("to"),
        py::arg("out"), py::arg("scales"), py::arg("threads"),
        "Pool (items, channels, positions) at an address to rows; method: 0 avg, 1 max, 2 gem;\n"
        "types: 0 float32, 1 float16, 2 bfloat16, 3 int8.");
}

}  // namespace pyfeat
