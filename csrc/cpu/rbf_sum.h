// What `rbf_sum` does with one tile of row pairs; threads and room are the binding's.
#pragma once

#include "gemm.h"

namespace pyfeat {

enum class PairKernel { kGaussian, kLaplacian, kPolynomial };
enum class Wanted { kValue, kSums, kGradient };  // each with all that stands before it

// Gaussian: sum over b of exp(-gammas[b] |x - y|^2), gammas ascending; term b is the one before it
// squared squarings[b] times, or with 0 an exp of its own. Laplacian: exp(-gammas[0] |x - y|_1).
// Polynomial: (gammas[0] <x, y> + coef0)^degree.
struct PairForm {
  PairKernel kind;
  int count;
  const float* gammas;
  const int* squarings;
  float coef0;
  int degree;
};

// One side of a tile. `weights` and `norms` have room for whole vectors, zeros behind `count`;
// so have `sums` (of weight of the other side * kernel) and `pulls` (of coefficients), added to.
struct TileSide {
  std::ptrdiff_t count;
  const float* norms;  // squared length of the row as it was multiplied
  float* weights;
  float* sums;
  float* pulls;
};

// Shape of the panels that `rbf_distances` reads; kc is that of gemm_shape().
PYFEAT_DECLARE(GemmShape, rbf_distance_shape, ())

// c[i * stride + j] = sum over k of |a_ik - b_jk|, panels packed by gemm_pack; m and n are
// multiples of the panels.
PYFEAT_DECLARE(void, rbf_distances,
               (std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a,
                const float* b, float* c, std::ptrdiff_t stride))

// out (count, d) = x - centre (null: x), norms[i] = its squared lengths. A row that is not finite,
// or whose squared length exceeds 1e37, becomes NaN throughout: no sum of three such products
// overflows.
PYFEAT_DECLARE(void, rbf_centre,
               (const float* x, std::ptrdiff_t count, std::ptrdiff_t d, const float* centre,
                float* out, float* norms))

// Where a tile of inner products would say too little about the distances of rows far out but near
// to each other: turns all of it into -|x - y|^2 / 2, those distances summed from differences, and
// returns true; norms then count as 0, or NaN. x and y are the rows, each d numbers.
PYFEAT_DECLARE(bool, rbf_near,
               (const PairForm& form, const TileSide& rows, const float* x, const TileSide& columns,
                const float* y, std::ptrdiff_t d, float* tile, std::ptrdiff_t stride))

// Turns a tile of inner products (Laplacian: distances) into sums, and, for the gradient, into the
// coefficients wx_i wy_j s_ij, s = -2 dk/d|x-y|^2, -dk/d|x-y|_1 or dk/d<x,y>. Returns
// the sum of wx_i wy_j k_ij. `same`: both sides are the same rows, so that i = j is a row with
// itself: at distance 0, or not counted where `leave_out`; then sums of columns are not wanted.
PYFEAT_DECLARE(double, rbf_tile,
               (const PairForm& form, const TileSide& rows, const TileSide& columns, float* tile,
                std::ptrdiff_t stride, Wanted wanted, bool same, bool leave_out))

// gradient (rows, d) -= sum over j of c_ij sign(x_i - y_j), c_ij = tile[i * down + j * across].
PYFEAT_DECLARE(void, rbf_signs,
               (const float* x, std::ptrdiff_t rows, const float* y, std::ptrdiff_t columns,
                std::ptrdiff_t d, const float* tile, std::ptrdiff_t down, std::ptrdiff_t across,
                float* gradient))

}  // namespace pyfeat
