// The hot loops of `topk`: norms, a few dot products, the search of a tile, and exact scores.
#pragma once

#include "gemm.h"

namespace pyfeat {

enum class Metric { kInner, kCosine, kL2 };

// For every row as it is packed, that is without its scale: squared[i], the sum of squares in
// float64 (infinite or NaN when a number is), and, where `rest` is not null, rest[i], the norm of
// what rounding to bfloat16 takes away. Numbers of a row must be adjacent.
PYFEAT_DECLARE(void, topk_norms,
               (const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t d, double* squared,
                float* rest))

// c[q * stride + i] = query q (n, d) . row i, and squared[i] = row i . row i, in float32 and
// without scales: for so few queries that packing rows would cost more than multiplying them. n >
// 0.
PYFEAT_DECLARE(void, topk_dots,
               (const float* queries, std::ptrdiff_t n, const Rows& rows, std::ptrdiff_t count,
                std::ptrdiff_t d, float* squared, float* c, std::ptrdiff_t stride))

// The numbers of RowBounds in bindings/topk_shortlist.h, and the largest p, w and z.
struct KeyBounds {
  float *mul, *add, *p, *w, *z, *most;
};

// Those of `count` rows by squares and scales (null: 1) in float32, where a product errs by `error`
// times the norms. w = -1 where a square or scale is so large, small or odd that float64 must look.
PYFEAT_DECLARE(void, topk_bounds,
               (const float* squared, const float* scales, int count, std::ptrdiff_t d, float error,
                Metric metric, const KeyBounds& out))

// Writes every i < count for which mul[i] * c[i] + add[i] < limit is not true (so also where it is
// NaN), in ascending order, and returns how many there are.
PYFEAT_DECLARE(int, topk_search,
               (const float* c, const float* mul, const float* add, int count, float limit,
                std::int32_t* found))

// The score of row `row` summed in float64, larger is better: inner product, cosine, or minus the
// squared distance. NaN when a number of the row is infinite or NaN. `squared` is |query|^2.
PYFEAT_DECLARE(double, topk_score,
               (const float* query, double squared, const Rows& rows, std::ptrdiff_t row,
                std::ptrdiff_t d, Metric metric))

}  // namespace pyfeat
