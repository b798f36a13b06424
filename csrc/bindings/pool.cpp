// Threads and scratch for `pool`. Arguments were checked in pyfeat/ops.
#include "../cpu/pool.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kNumbersOfChunk = 1 << 18;
constexpr std::ptrdiff_t kLeastRange = 64;  // channels, a multiple of every vector
// Some 50 us from a cache, so that a second thread pays; numbers to a broken power take longer.
constexpr double kNumbersOfThread = 1 << 19, kPowersOfThread = 1 << 16;

using Three = std::array<std::ptrdiff_t, 3>;  // items, channels, positions

// The kernel on maps that lie behind each other, and on a few of their channels.
struct Maps {
  const std::uint8_t* data;
  Item item;
  Three shape, strides;

  FeatureMap of(std::ptrdiff_t i, std::ptrdiff_t first, std::ptrdiff_t channels) const {
    // From the first number to behind the last one of all.
    const std::ptrdiff_t reach =
        (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1] + (shape[2] - 1) * strides[2] + 1;
    const std::ptrdiff_t skipped = i * strides[0] + first * strides[1];
    return {data + skipped * bytes_of(item),
            item,
            reach - skipped,
            channels,
            shape[2],
            strides[1],
            strides[2]};
  }
};

// Fewer maps than would keep all threads busy: each is cut into ranges of channels, and the row
// finished when all of it is there. The maximum of one number is that number.
void pool_few(const Maps& maps, const PoolPlan& plan, std::uint8_t* out, float* scales,
              std::size_t threads) {
  const auto [n, channels, positions] = maps.shape;
  const std::ptrdiff_t ranges = std::min((channels + kLeastRange - 1) / kLeastRange,
                                         static_cast<std::ptrdiff_t>(4 * threads));
  const std::ptrdiff_t range =
      ((channels + ranges - 1) / ranges + kLeastRange - 1) / kLeastRange * kLeastRange;
  const std::size_t room = pool_scratch(channels);
  const std::unique_ptr<float[]> scratch(new float[room * threads]);
  const std::unique_ptr<float[]> rows(new float[static_cast<std::size_t>(n * channels)]);
  const PoolPlan part{plan.method, false, plan.p, false, Item::kFloat32};
  parallel(static_cast<std::size_t>(n * ranges), threads,
           [&](std::size_t chunk, std::size_t thread) {
             const std::ptrdiff_t i = static_cast<std::ptrdiff_t>(chunk) / ranges;
             const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(chunk) % ranges * range;
             if (first >= channels) return;
             PYFEAT_KERNEL(pool)
             (maps.of(i, first, std::min(range, channels - first)), part,
              scratch.get() + room * thread, rows.get() + i * channels + first, nullptr);
           });
  const PoolPlan finish{Pooling::kMax, false, plan.p, plan.l2, plan.to};
  for (std::ptrdiff_t i = 0; i < n; ++i) PYFEAT_KERNEL(pool)
  ({rows.get() + i * channels, Item::kFloat32, channels, channels, 1, 1, 1}, finish, scratch.get(),
   out + i * channels * bytes_of(plan.to), scales ? scales + i : nullptr);
}

void pool(std::uintptr_t x, int item, const Three& shape, const Three& strides, int method,
          bool first, double p, bool l2, int to, std::uintptr_t out, std::uintptr_t scales,
          std::size_t threads) {
  const py::gil_scoped_release unlocked;
  const auto [n, channels, positions] = shape;
  if (n == 0) return;
  const PoolPlan plan{static_cast<Pooling>(method), first, p, l2, static_cast<Item>(to)};
  const Maps maps{reinterpret_cast<const std::uint8_t*>(x), static_cast<Item>(item), shape,
                  strides};
  const std::ptrdiff_t width = first ? 2 * channels : channels;
  const std::ptrdiff_t numbers = std::max<std::ptrdiff_t>(channels * positions, 1);
  const bool powers = plan.method == Pooling::kGem && p != std::floor(p);
  threads = worthwhile_threads(threads, static_cast<double>(n) * static_cast<double>(numbers),
                               powers ? kPowersOfThread : kNumbersOfThread);
  if (threads > 1 && !first && channels > kLeastRange &&
      n < 4 * static_cast<std::ptrdiff_t>(threads))
    return pool_few(maps, plan, reinterpret_cast<std::uint8_t*>(out),
                    reinterpret_cast<float*>(scales), threads);
  // Maps that a thread reads one after another, in at least four shares for each thread.
  const std::ptrdiff_t items = std::max<std::ptrdiff_t>(
      1, std::min(kNumbersOfChunk / numbers, n / (4 * static_cast<std::ptrdiff_t>(threads))));
  const std::size_t room = pool_scratch(channels);
  const std::unique_ptr<float[]> scratch(new float[room * threads]);
  parallel(static_cast<std::size_t>((n + items - 1) / items), threads,
           [&](std::size_t chunk, std::size_t thread) {
             const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(chunk) * items;
             for (std::ptrdiff_t i = begin; i < std::min(n, begin + items); ++i) {
               PYFEAT_KERNEL(pool)
               (maps.of(i, 0, channels), plan, scratch.get() + room * thread,
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
