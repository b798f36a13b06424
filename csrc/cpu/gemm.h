// The matrix product under the ops: C (m, n) = or += A (m, k) B (n, k)^T, from packed panels.
//
// A side is packed once and used for as many products as wanted. Packed numbers lie in blocks of
// kc along k (the last one shorter); inside a block, panel after panel of mr (A) or nr (B) rows,
// filled up with rows of zeros; inside a panel, for each step along k, one number of every row:
// the order in which the innermost loop reads them. With bfloat16 a step is two neighbours along
// k (an odd k gets a zero), summed in float32.
#pragma once

#include "item.h"
#include "kernels.h"

namespace pyfeat {

// Where the rows of a side lie. Strides count items; one of them is 1 for speed.
struct Rows {
  const void* data;
  Item item;
  std::ptrdiff_t row_stride;    // from row i to row i + 1
  std::ptrdiff_t depth_stride;  // along k
  const float* scales;          // row i counts scales[i] times; null: once
};

// Panels of the instruction set in use.
struct GemmShape {
  int mr, nr, kc;
};

// Numbers in `rows` rows of depth k once packed for panels of `panel` rows.
static inline std::size_t packed_size(std::ptrdiff_t rows, std::ptrdiff_t k, int panel) {
  return static_cast<std::size_t>((rows + panel - 1) / panel * panel * ((k + 1) / 2 * 2));
}

PYFEAT_DECLARE(GemmShape, gemm_shape, ())

// Packs `count` rows for side A (panel = mr) or B (panel = nr); out has packed_size(count, k).
PYFEAT_DECLARE(void, gemm_pack,
               (const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel, float* out))
PYFEAT_DECLARE(void, gemm_pack_bf16,
               (const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel,
                std::uint16_t* out))

// c[i * stride + j] = (or += where `add`) the product of packed row i of A and packed row j of B,
// i < m, j < n. Best when n panels of B of depth kc fit in the first-level cache one at a time and
// A in the second-level one: m of some hundreds, any n.
PYFEAT_DECLARE(void, gemm_packed,
               (std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a,
                const float* b, bool add, float* c, std::ptrdiff_t stride))
PYFEAT_DECLARE(void, gemm_packed_bf16,
               (std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const std::uint16_t* a,
                const std::uint16_t* b, bool add, float* c, std::ptrdiff_t stride))

// Memory that is wanted next: it comes into the second-level cache while a product runs, at most
// one line of 64 bytes at each step, so of a product with few steps only some of it.
struct Ahead {
  const void* data;
  std::ptrdiff_t bytes;
};

// As gemm_packed, for panels of A of `panel` rows: even and at most mr.
PYFEAT_DECLARE(void, gemm_packed_ahead,
               (std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a,
                const float* b, bool add, float* c, std::ptrdiff_t stride, int panel, Ahead next))
PYFEAT_DECLARE(void, gemm_packed_ahead_bf16,
               (std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const std::uint16_t* a,
                const std::uint16_t* b, bool add, float* c, std::ptrdiff_t stride, int panel,
                Ahead next))

}  // namespace pyfeat
