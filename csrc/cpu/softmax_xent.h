// What lies between the two products of multinomial logistic regression: logits to residuals.
#pragma once

#include "gemm.h"

namespace pyfeat {

// Rows of one block, and the distance between two classes of one: padded, so that the classes of a
// row do not fall into a few sets of the first-level cache.
constexpr int kXentRows = 256;
constexpr int kXentStride = kXentRows + 16;
// Rows that are packed at once, a multiple of every nr: as float32 they stay in the second-level
// cache until both sides have them.
constexpr int kXentGroup = 32;

// One problem on a block of rows. logits[c * kXentStride + i] is of class c and row i, without the
// intercepts; what stands there for rows past `rows` does not matter.
struct XentBlock {
  std::ptrdiff_t rows, classes;
  const std::int64_t* labels;  // (rows), 0 <= label < max(classes, 2)
  const float* weights;        // (rows), or null: 1 each
  float unit;                  // every weight counts so many times
  const float* intercepts;     // of class c at intercepts[c * step]
  std::ptrdiff_t step;
  float* logits;
  float* turns;  // along a direction: X V^T laid out as logits, and its intercepts; or null
  const float* turn_intercepts;
};

// What one problem adds up to over rows: per class the residuals, p (1 - p), and the turned
// residuals. Added to.
struct XentSums {
  double* loss;
  double* residuals;
  double* spread;
  double* turned;
};

// With p the probabilities of a row, y its label and w its weight: logits become
// w (p - onehot(y)), turns become w p (t - sum_c p_c t_c). Classes = 1 is the logistic loss.
PYFEAT_DECLARE(void, xent_residuals, (const XentBlock& block, const XentSums& sums))

// out[i * d + j] = scales[i] * data[i * d + j] - shift[j], i < rows; scales and shift may be null.
PYFEAT_DECLARE(void, xent_rows,
               (const void* data, Item item, const float* scales, const float* shift,
                std::ptrdiff_t rows, std::ptrdiff_t d, float* out))

// Packs rows [first, first + count) of a block of `depth` for side B of `gemm_packed`, its columns
// being what gemm.h calls rows: x is row `first`, out the whole block. first is even, depth at most
// kc.
PYFEAT_DECLARE(void, xent_pack_columns,
               (const float* x, std::ptrdiff_t first, std::ptrdiff_t count, std::ptrdiff_t depth,
                std::ptrdiff_t d, GemmShape shape, float* out))
PYFEAT_DECLARE(void, xent_pack_columns_bf16,
               (const float* x, std::ptrdiff_t first, std::ptrdiff_t count, std::ptrdiff_t depth,
                std::ptrdiff_t d, GemmShape shape, std::uint16_t* out))

// The two products for a few outputs, where packing would cost more than multiplying:
// logits[c * kXentStride + i] = theta[c * (d + 1) : + d] . x[i], and
// gradient[c * d + j] = (or += where `add`) sum_i logits[c * kXentStride + i] x[i * d + j].
PYFEAT_DECLARE(void, xent_few_scores,
               (const float* x, std::ptrdiff_t rows, std::ptrdiff_t d, const float* theta,
                std::ptrdiff_t outputs, float* logits))
PYFEAT_DECLARE(void, xent_few_gradients,
               (const float* x, std::ptrdiff_t rows, std::ptrdiff_t d, const float* logits,
                std::ptrdiff_t outputs, bool add, float* gradient))

// sums[i] += part[i], i < n
PYFEAT_DECLARE(void, xent_merge, (const float* part, std::ptrdiff_t n, double* sums))

}  // namespace pyfeat
