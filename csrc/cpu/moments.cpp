// Rows to centred slabs, and tiles of the upper triangle of their product in float32, added to
// float64.
#include "moments.h"

#include "convert.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr std::ptrdiff_t kStrip = 512;   // columns whose sums stay in the first-level cache
constexpr std::ptrdiff_t kPartial = 64;  // rows that are summed in float32

std::ptrdiff_t smaller(std::ptrdiff_t a, std::ptrdiff_t b) { return a < b ? a : b; }

std::ptrdiff_t row_at(const MomentRows& rows, std::ptrdiff_t i) {
  return rows.order ? static_cast<std::ptrdiff_t>(rows.order[i]) : i;
}
float weight_of(const MomentRows& rows, std::ptrdiff_t row) {
  return rows.weights ? rows.weights[row] : 1.0f;
}

// out = columns [j, j + n) of a row.
void read_row(const MomentRows& rows, std::ptrdiff_t row, std::ptrdiff_t j, std::ptrdiff_t n,
              float* out) {
  to_floats(skip_items(rows.data, rows.item, row * rows.width + j), rows.item, n,
            rows.scales ? rows.scales[row] : 1.0f, out);
}

// values = root (values - shift), sums += root values, n numbers each.
void centre(float* values, std::ptrdiff_t n, const float* shift, float root, float* sums) {
  std::ptrdiff_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    const Floats v = (load_floats(values + j) - load_floats(shift + j)) * root;
    store_floats(values + j, v);
    store_floats(sums + j, load_floats(sums + j) + v * root);
  }
  for (; j < n; ++j) {
    values[j] = (values[j] - shift[j]) * root;
    sums[j] += values[j] * root;
  }
}

void add_squares(const float* values, std::ptrdiff_t n, float* sums) {
  std::ptrdiff_t j = 0;
  for (; j + kWidth <= n; j += kWidth) {
    const Floats v = load_floats(values + j);
    store_floats(sums + j, v * v + load_floats(sums + j));
  }
  for (; j < n; ++j) sums[j] += values[j] * values[j];
}

// Moves the partial sums to `sums`, which hold nothing yet when it is the `first` time.
void flush(float* partial, std::ptrdiff_t n, bool first, double* sums) {
  for (std::ptrdiff_t j = 0; j < n; ++j) {
    sums[j] = first ? 0.0 : sums[j] + partial[j];
    partial[j] = 0;
  }
}

// product = the columns of the tile times each other over all slabs; panels of A that lie partly
// below the diagonal skip the panels of B that lie wholly below it.
void multiply(const MomentPanels& panels, const MomentTile& tile, float* product) {
  const GemmShape shape = gemm_shape();
  const std::ptrdiff_t stride = tile.j1 - tile.j0;
  const bool above = tile.j0 + 1 >= tile.i1;
  const std::ptrdiff_t step = above ? tile.i1 - tile.i0 : shape.mr;
  const float* a = panels.a;
  const float* b = panels.b;
  for (std::ptrdiff_t row = 0; row < panels.rows; row += panels.depth) {
    const std::ptrdiff_t k = smaller(panels.depth, panels.rows - row);
    for (std::ptrdiff_t i = tile.i0; i < tile.i1; i += step) {
      const std::ptrdiff_t diagonal = i / shape.nr * shape.nr;
      const std::ptrdiff_t j = diagonal > tile.j0 ? diagonal : tile.j0;
      if (j >= tile.j1) break;
      gemm_packed(smaller(step, tile.i1 - i), tile.j1 - j, k, a + i * k, b + j * k, row > 0,
                  product + (i - tile.i0) * stride + (j - tile.j0), stride);
    }
    a += panels.a_slab;
    b += panels.b_slab;
  }
}

}  // namespace

void moments_mean(const MomentRows& rows, std::ptrdiff_t first, std::ptrdiff_t count,
                  std::ptrdiff_t step, float* mean) {
  float values[kStrip];
  double sums[kStrip];
  for (std::ptrdiff_t j0 = 0; j0 < rows.width; j0 += kStrip) {
    const std::ptrdiff_t n = smaller(kStrip, rows.width - j0);
    double total = 0;
    for (std::ptrdiff_t j = 0; j < n; ++j) sums[j] = 0;
    for (std::ptrdiff_t i = first; i < first + count; i += step) {
      const std::ptrdiff_t row = row_at(rows, i);
      const double weight = weight_of(rows, row);
      read_row(rows, row, j0, n, values);
      for (std::ptrdiff_t j = 0; j < n; ++j) sums[j] += weight * values[j];
      total += weight;
    }
    for (std::ptrdiff_t j = 0; j < n; ++j) mean[j0 + j] = static_cast<float>(sums[j] / total);
  }
}

void moments_fill(const MomentRows& rows, std::ptrdiff_t first, std::ptrdiff_t count,
                  const float* shift, float* slab, std::ptrdiff_t pitch, double* sums) {
  float partial[kStrip];
  for (std::ptrdiff_t j0 = 0; j0 < rows.width; j0 += kStrip) {
    const std::ptrdiff_t n = smaller(kStrip, rows.width - j0);
    for (std::ptrdiff_t r = 0; r < count; ++r) {
      if (r % kPartial == 0) flush(partial, n, r == 0, sums + j0);
      const std::ptrdiff_t row = row_at(rows, first + r);
      float* to = slab + r * pitch + j0;
      read_row(rows, row, j0, n, to);
      centre(to, n, shift + j0, __builtin_sqrtf(weight_of(rows, row)), partial);
    }
    flush(partial, n, false, sums + j0);
  }
}

void moments_squares(const float* slab, std::ptrdiff_t count, std::ptrdiff_t width,
                     std::ptrdiff_t pitch, double* squares) {
  float partial[kStrip];
  for (std::ptrdiff_t j0 = 0; j0 < width; j0 += kStrip) {
    const std::ptrdiff_t n = smaller(kStrip, width - j0);
    for (std::ptrdiff_t r = 0; r < count; ++r) {
      if (r % kPartial == 0) flush(partial, n, r == 0, squares + j0);
      add_squares(slab + r * pitch + j0, n, partial);
    }
    flush(partial, n, false, squares + j0);
  }
}

void moments_tile(const MomentPanels& panels, const MomentTile& tile, const MomentShift& shift,
                  std::ptrdiff_t d, float* product, double* scatter) {
  multiply(panels, tile, product);
  const std::ptrdiff_t stride = tile.j1 - tile.j0;
  for (std::ptrdiff_t i = tile.i0; i < tile.i1; ++i) {
    const double rest = -shift.weight * shift.rest[i], gap = shift.factor * shift.gap[i];
    const float* from = product + (i - tile.i0) * stride - tile.j0;
    double* to = scatter + i * d;
    for (std::ptrdiff_t j = i > tile.j0 ? i : tile.j0; j < tile.j1; ++j)
      to[j] += from[j] + rest * shift.rest[j] + gap * shift.gap[j];
  }
}

}  // namespace pyfeat::PYFEAT_ISA
