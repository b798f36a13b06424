// What this machine can do at most, measured: FLOP and bytes read a second.
#include "../cpu/ceiling.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kTurns = 2'000'000;            // some 10 ms
constexpr std::size_t kNumbers = std::size_t{1} << 24;  // 64 MiB a thread, larger than any cache

template <typename Work>
double seconds(std::size_t threads, const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  parallel(threads, threads, [&](std::size_t chunk, std::size_t) { work(chunk); });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double flop_per_second(bool bf16, std::size_t threads) {
  const py::gil_scoped_release unlocked;
  threads = std::max<std::size_t>(threads, 1);
  std::vector<float> out(threads);
  std::vector<double> flop(threads);
  const double time = seconds(threads, [&](std::size_t t) {
    flop[t] = PYFEAT_KERNEL(multiply_add_loop)(kTurns, bf16, 1e-3f, &out[t]);
  });
  return static_cast<double>(threads) * flop[0] / time;
}

double bytes_read_per_second(std::size_t threads) {
  const py::gil_scoped_release unlocked;
  threads = std::max<std::size_t>(threads, 1);
  const std::vector<float> numbers(kNumbers * threads, 1.0f);
  std::vector<float> out(threads);
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double time = seconds(threads, [&](std::size_t t) {
      PYFEAT_KERNEL(read_loop)(numbers.data() + t * kNumbers, kNumbers, &out[t]);
    });
    best = std::max(best, static_cast<double>(numbers.size() * sizeof(float)) / time);
  }
  return best;
}

}  // namespace

void bind_ceiling(py::module_& m) {
  m.def("flop_per_second", &flop_per_second, py::arg("bf16"), py::arg("threads"),
        "Multiply-adds in registers, measured once, with the instruction set in use.");
  m.def("bytes_read_per_second", &bytes_read_per_second, py::arg("threads"),
        "Best of five readings of 64 MiB a thread.");
}

}  // namespace pyfeat
