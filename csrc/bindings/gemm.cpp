// C = A B^T on several threads: what the benchmark and the tests of the micro-kernel call.
#include "../cpu/gemm.h"

#include <algorithm>
#include <memory>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kRowsOfA = 336;   // with depth kc in the second-level cache
constexpr std::ptrdiff_t kRowsOfB = 2048;  // packed by whoever multiplies with them

template <typename Number, typename PackA, typename Product>
void multiply(const Rows& a, const Rows& b, std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k,
              std::size_t threads, float* c, PackA pack, Product product) {
  const GemmShape shape = PYFEAT_KERNEL(gemm_shape)();
  // As many blocks for one thread as for another.
  const auto workers = static_cast<std::ptrdiff_t>(threads);
  const std::ptrdiff_t turns = m / (kRowsOfA * workers) + 1;
  const std::ptrdiff_t tall = (m / (turns * workers) / shape.mr + 1) * shape.mr;
  const std::ptrdiff_t down = (m + tall - 1) / tall, across = (n + kRowsOfB - 1) / kRowsOfB;
  const auto room = [&](std::ptrdiff_t rows, int panel) {
    return std::unique_ptr<Number[]>(new Number[packed_size(rows, k, panel)]);
  };
  const auto part = [](const Rows& rows, std::ptrdiff_t first) {
    Rows cut = rows;
    const std::ptrdiff_t bytes = first * rows.row_stride *
                                 (rows.item == Item::kFloat32 ? 4
                                  : rows.item == Item::kInt8  ? 1
                                                              : 2);
    cut.data = static_cast<const std::uint8_t*>(rows.data) + bytes;
    if (cut.scales) cut.scales += first;
    return cut;
  };
  for (std::ptrdiff_t wide = 0; wide < across; ++wide) {
    const std::ptrdiff_t j = wide * kRowsOfB, columns = std::min(kRowsOfB, n - j);
    const auto right = room(columns, shape.nr);
    pack(part(b, j), columns, k, shape.nr, right.get());
    parallel(static_cast<std::size_t>(down), threads, [&](std::size_t block, std::size_t) {
      const std::ptrdiff_t i = static_cast<std::ptrdiff_t>(block) * tall;
      const std::ptrdiff_t rows = std::min(tall, m - i);
      const auto left = room(rows, shape.mr);
      pack(part(a, i), rows, k, shape.mr, left.get());
      product(rows, columns, k, left.get(), right.get(), false, c + i * n + j, n);
    });
  }
}

void gemm(std::uintptr_t a, std::uintptr_t b, std::uintptr_t c, std::ptrdiff_t m, std::ptrdiff_t n,
          std::ptrdiff_t k, int item, bool bf16, std::size_t threads) {
  const py::gil_scoped_release unlocked;
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
