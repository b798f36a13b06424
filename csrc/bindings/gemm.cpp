// C = A B^T on several threads: what the benchmark and the tests of the micro-kernel call.
#include "../cpu/gemm.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kRowsOfA = 336;   // with depth kc in the second-level cache
constexpr std::ptrdiff_t kRowsOfB = 4096;  // in the last-level cache, shared by the threads

Rows part(const Rows& rows, std::ptrdiff_t first, std::ptrdiff_t depth) {
  Rows cut = rows;
  cut.data = static_cast<const std::uint8_t*>(rows.data) +
             (first * rows.row_stride + depth * rows.depth_stride) * bytes_of(rows.item);
  if (cut.scales) cut.scales += first;
  return cut;
}

template <typename Number, typename PackA, typename Product>
void multiply(const Rows& a, const Rows& b, std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k,
              std::size_t threads, float* c, PackA pack, Product product) {
  const GemmShape shape = PYFEAT_KERNEL(gemm_shape)();
  const auto room = [k](std::ptrdiff_t rows, int panel) {
    return std::unique_ptr<Number[]>(new Number[packed_size(rows, k, panel)]);
  };
  // As many blocks for one thread as for another.
  const auto workers = static_cast<std::ptrdiff_t>(threads);
  const std::ptrdiff_t turns = m / (kRowsOfA * workers) + 1;
  const std::ptrdiff_t tall = (m / (turns * workers) / shape.mr + 1) * shape.mr;
  const auto down = static_cast<std::size_t>((m + tall - 1) / tall);
  std::vector<std::unique_ptr<Number[]>> lefts(threads);
  const auto right = room(std::min(kRowsOfB, n), shape.nr);
  for (std::ptrdiff_t j = 0; j < n; j += kRowsOfB) {
    const std::ptrdiff_t columns = std::min(kRowsOfB, n - j);
    const auto deep = static_cast<std::size_t>((k + shape.kc - 1) / shape.kc);
    parallel(deep, threads, [&](std::size_t block, std::size_t) {
      const std::ptrdiff_t k0 = static_cast<std::ptrdiff_t>(block) * shape.kc;
      pack(part(b, j, k0), columns, std::min<std::ptrdiff_t>(shape.kc, k - k0), shape.nr,
           right.get() + packed_size(columns, k0, shape.nr));
    });
    parallel(down, threads, [&](std::size_t block, std::size_t thread) {
      const std::ptrdiff_t i = static_cast<std::ptrdiff_t>(block) * tall;
      const std::ptrdiff_t rows = std::min(tall, m - i);
      if (!lefts[thread]) lefts[thread] = room(tall, shape.mr);
      Number* left = lefts[thread].get();
      pack(part(a, i, 0), rows, k, shape.mr, left);
      product(rows, columns, k, left, right.get(), false, c + i * n + j, n);
    });
  }
}

void gemm(std::uintptr_t a, std::uintptr_t b, std::uintptr_t c, std::ptrdiff_t m, std::ptrdiff_t n,
          std::ptrdiff_t k, int item, bool bf16, std::size_t threads) {
  const py::gil_scoped_release unlocked;
  threads = std::max<std::size_t>(threads, 1);
  const Rows left{reinterpret_cast<const void*>(a), static_cast<Item>(item), k, 1, nullptr};
  const Rows right{reinterpret_cast<const void*>(b), static_cast<Item>(item), k, 1, nullptr};
  float* out = reinterpret_cast<float*>(c);
  if (bf16)
    multiply<std::uint16_t>(left, right, m, n, k, threads, out, PYFEAT_KERNEL(gemm_pack_bf16),
                            PYFEAT_KERNEL(gemm_packed_bf16));
  else
    multiply<float>(left, right, m, n, k, threads, out, PYFEAT_KERNEL(gemm_pack),
                    PYFEAT_KERNEL(gemm_packed));
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("gemm", &gemm, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("m"), py::arg("n"),
        py::arg("k"), py::arg("item"), py::arg("bf16"), py::arg("threads"),
        "C = A B^T at addresses, C float32; item: 0 float32, 1 float16, 2 bfloat16, 3 int8.");
}

}  // namespace pyfeat
