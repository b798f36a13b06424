// Weighted sums and products of centred rows, the parts of `moments`.
//
// Rows are taken in slabs of a depth that the panels of gemm.h hold in one block. A slab is
// centred and turned into panels of its columns: the product of two columns sums over the rows.
#pragma once

#include "gemm.h"

namespace pyfeat {

struct MomentRows {
  const void* data;
  Item item;
  std::ptrdiff_t width;       // d: numbers in a row, and from a row to the next
  const std::int64_t* order;  // the rows to take, in this order; null: as they lie
  const float* weights;       // of every row in `data`, above 0; null: 1
  const float* scales;        // a row counts scales[row] times; null: once
};

// `slabs` slabs one after another for either side; all of `depth` rows but perhaps the last.
struct MomentPanels {
  const float* a;
  const float* b;
  std::size_t a_slab, b_slab;  // numbers from a slab to the next
  std::ptrdiff_t rows, depth;
};

// Columns [i0, i1) against [j0, j1): i0 a multiple of mr, j0 of nr.
struct MomentTile {
  std::ptrdiff_t i0, i1, j0, j1;
};

// What is added beside the products: -weight rest rest^T + factor gap gap^T, all of width d.
struct MomentShift {
  double weight, factor;
  const double* rest;
  const double* gap;
};

// mean = the weighted mean of rows first, first + step, ... below first + count.
PYFEAT_DECLARE(void, moments_mean,
               (const MomentRows& rows, std::ptrdiff_t first, std::ptrdiff_t count,
                std::ptrdiff_t step, float* mean))

// slab[r * pitch + j] = sqrt(w) (x[first + r][j] - shift[j]), r < count; sums[j] = the sum of
// w (x - shift), count at least 1.
PYFEAT_DECLARE(void, moments_fill,
               (const MomentRows& rows, std::ptrdiff_t first, std::ptrdiff_t count,
                const float* shift, float* slab, std::ptrdiff_t pitch, double* sums))

// squares[j] = sum over r < count of slab[r * pitch + j]^2, count at least 1.
PYFEAT_DECLARE(void, moments_squares,
               (const float* slab, std::ptrdiff_t count, std::ptrdiff_t width, std::ptrdiff_t pitch,
                double* squares))

// scatter[i * d + j] += the product of columns i and j, and the shift's part, for j >= i in the
// tile. `product` has room for (i1 - i0) (j1 - j0) numbers.
PYFEAT_DECLARE(void, moments_tile,
               (const MomentPanels& panels, const MomentTile& tile, const MomentShift& shift,
                std::ptrdiff_t d, float* product, double* scatter))

}  // namespace pyfeat
