// Kernel values of a tile of row pairs, summed while the tile is in cache.
#include "rbf_sum.h"

#include "simd_float.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr float kLongest = 1e37f;  // of a squared length
// |x|^2 + |y|^2 - 2 <x, y> is wrong by some eps (|x|^2 + |y|^2): kernel values notice where gamma
// times that sum exceeds kFar and the distance is below kNear of it.
constexpr float kFar = 128, kNear = 1.0f / 16;
constexpr int kL1Rows = 6, kL1Vectors = 2;
constexpr int kL1Columns = kL1Vectors * kWidth;

Floats absolute(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Int32s>(x) & 0x7FFFFFFF);
}

// exp underflows to 0 and NaN stays: the comparison below is false for it.
Floats not_negative(Floats x) { return x < 0.0f ? Floats{} : x; }

struct Gaussian {
  static constexpr bool kBounded = true;
  const PairForm& form;

  template <bool kSlope>
  Floats value(Floats product, Floats row_norm, Floats norm, Floats& slope) const {
    const Floats squared = not_negative((row_norm + norm) - 2.0f * product);
    Floats term{}, sum{}, weighted{};
    for (int b = 0; b < form.count; ++b) {
      if (form.squarings[b] == 0) term = exp_of(squared * -form.gammas[b]);
      for (int s = 0; s < form.squarings[b]; ++s) term = term * term;
      sum += term;
      if (kSlope) weighted += term * form.gammas[b];
    }
    slope = weighted * 2.0f;
    return sum;
  }
};

// One bandwidth: no loop between the exp of one vector and of the next.
struct OneGaussian {
  static constexpr bool kBounded = true;
  float gamma;

  template <bool kSlope>
  Floats value(Floats product, Floats row_norm, Floats norm, Floats& slope) const {
    const Floats squared = not_negative((row_norm + norm) - 2.0f * product);
    const Floats k = exp_of(squared * -gamma);
    slope = k * (2.0f * gamma);
    return k;
  }
};

struct Laplacian {
  static constexpr bool kBounded = true;
  float gamma;

  template <bool kSlope>
  Floats value(Floats distance, Floats, Floats, Floats& slope) const {
    const Floats k = exp_of(distance * -gamma);
    slope = k * gamma;
    return k;
  }
};

struct Polynomial {
  static constexpr bool kBounded = false;
  const PairForm& form;

  template <bool kSlope>
  Floats value(Floats product, Floats, Floats, Floats& slope) const {
    const Floats base = product * form.gammas[0] + form.coef0;
    Floats power = splat(1.0f);  // base^(degree - 1)
    for (int i = 1; i < form.degree; ++i) power = power * base;
    slope = power * (static_cast<float>(form.degree) * form.gammas[0]);
    return power * base;
  }
};

// The numbers of `v` but 0 behind the last column and in column `skip`: a weight of 0 does not take
// out what is infinite.
Floats only_pairs(Floats v, std::ptrdiff_t j, std::ptrdiff_t count, std::ptrdiff_t skip) {
  Int32s column;
  for (int i = 0; i < kWidth; ++i) column[i] = static_cast<std::int32_t>(j + i);
  const Int32s there =
      (column < static_cast<std::int32_t>(count)) & (column != static_cast<std::int32_t>(skip));
  return there ? v : Floats{};
}

// One row of the tile: returns the sum over j of wy_j k_ij, without column `skip` where that is
// one.
template <Wanted kWanted, bool kColumns, typename Form>
float sum_row(const Form& form, const TileSide& rows, std::ptrdiff_t i, const TileSide& columns,
              float* line, std::ptrdiff_t skip) {
  constexpr bool kGradient = kWanted == Wanted::kGradient;
  const Floats row_norm = splat(rows.norms[i]);
  const float row_weight = rows.weights[i];
  Floats sum{}, pull{};
  for (std::ptrdiff_t j = 0; j < columns.count; j += kWidth) {
    Floats slope;
    Floats k = form.template value<kGradient>(load_floats(line + j), row_norm,
                                              load_floats(columns.norms + j), slope);
    if constexpr (!Form::kBounded) {
      k = only_pairs(k, j, columns.count, skip);
      if (kGradient) slope = only_pairs(slope, j, columns.count, skip);
    }
    const Floats weight = load_floats(columns.weights + j);
    sum += weight * k;
    if (kWanted != Wanted::kValue && kColumns)
      store_floats(columns.sums + j, load_floats(columns.sums + j) + k * row_weight);
    if (kGradient) {
      const Floats coefficient = slope * (weight * row_weight);
      store_floats(line + j, coefficient);
      pull += coefficient;
      if (kColumns) store_floats(columns.pulls + j, load_floats(columns.pulls + j) + coefficient);
    }
  }
  if (kGradient) rows.pulls[i] += sum_of(pull);
  return sum_of(sum);
}

template <Wanted kWanted, typename Form>
double sum_tile(const Form& form, const TileSide& rows, const TileSide& columns, float* tile,
                std::ptrdiff_t stride, bool same, bool leave_out) {
  double total = 0;
  for (std::ptrdiff_t i = 0; i < rows.count; ++i) {
    float* line = tile + i * stride;
    float sum;
    if (same) {
      const float weight = columns.weights[i];
      if (leave_out) columns.weights[i] = 0;
      const bool bad = rows.norms[i] != rows.norms[i];  // NaN times 0 stays NaN
      sum = sum_row<kWanted, false>(form, rows, i, columns, line, leave_out && !bad ? i : -1);
      columns.weights[i] = weight;
    } else {
      sum = sum_row<kWanted, true>(form, rows, i, columns, line, -1);
    }
    if (kWanted != Wanted::kValue) rows.sums[i] += sum;
    total += static_cast<double>(rows.weights[i]) * sum;
  }
  return total;
}

template <typename Form>
double sum_wanted(const Form& form, const TileSide& rows, const TileSide& columns, float* tile,
                  std::ptrdiff_t stride, Wanted wanted, bool same, bool leave_out) {
  switch (wanted) {
    case Wanted::kValue:
      return sum_tile<Wanted::kValue>(form, rows, columns, tile, stride, same, leave_out);
    case Wanted::kSums:
      return sum_tile<Wanted::kSums>(form, rows, columns, tile, stride, same, leave_out);
    default:
      return sum_tile<Wanted::kGradient>(form, rows, columns, tile, stride, same, leave_out);
  }
}

// One panel of rows against one of columns over `steps` steps, added to what stands in c.
void distance_panel(const float* a, const float* b, int steps, float* c, std::ptrdiff_t stride) {
  Floats sums[kL1Rows][kL1Vectors];
  for (int r = 0; r < kL1Rows; ++r)
    for (int v = 0; v < kL1Vectors; ++v) sums[r][v] = load_floats(c + r * stride + v * kWidth);
  for (int step = 0; step < steps; ++step) {
    Floats right[kL1Vectors];
    for (int v = 0; v < kL1Vectors; ++v) right[v] = load_floats(b + step * kL1Columns + v * kWidth);
#pragma GCC unroll 6
    for (int r = 0; r < kL1Rows; ++r) {
      const Floats left = splat(a[step * kL1Rows + r]);
#pragma GCC unroll 2
      for (int v = 0; v < kL1Vectors; ++v) sums[r][v] += absolute(left - right[v]);
    }
  }
  for (int r = 0; r < kL1Rows; ++r)
    for (int v = 0; v < kL1Vectors; ++v) store_floats(c + r * stride + v * kWidth, sums[r][v]);
}

float largest(const float* norms, std::ptrdiff_t count) {
  float found = 0;
  for (std::ptrdiff_t i = 0; i < count; ++i) found = norms[i] > found ? norms[i] : found;
  return found;
}

float squared_distance(const float* x, const float* y, std::ptrdiff_t d) {
  Floats sum{};
  std::ptrdiff_t k = 0;
  for (; k + kWidth <= d; k += kWidth) {
    const Floats difference = load_floats(x + k) - load_floats(y + k);
    sum += difference * difference;
  }
  if (k < d) {
    const int n = static_cast<int>(d - k);
    const Floats difference = load_some(x + k, n) - load_some(y + k, n);
    sum += difference * difference;
  }
  return sum_of(sum);
}

// Signs of one vector of features, `n` of them real, for kSignRows rows at a time.
constexpr int kSignRows = 4;

}  // namespace

GemmShape rbf_distance_shape() { return {kL1Rows, kL1Columns, gemm_shape().kc}; }

void rbf_distances(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a,
                   const float* b, float* c, std::ptrdiff_t stride) {
  for (std::ptrdiff_t i = 0; i < m; ++i)
    for (std::ptrdiff_t j = 0; j < n; ++j) c[i * stride + j] = 0;
  const std::ptrdiff_t kc = gemm_shape().kc;
  for (std::ptrdiff_t k0 = 0; k0 < k; k0 += kc) {
    const std::ptrdiff_t steps = k - k0 < kc ? k - k0 : kc;
    for (std::ptrdiff_t j = 0; j < n; j += kL1Columns)
      for (std::ptrdiff_t i = 0; i < m; i += kL1Rows)
        distance_panel(a + m * k0 + i * steps, b + n * k0 + j * steps, static_cast<int>(steps),
                       c + i * stride + j, stride);
  }
}

void rbf_centre(const float* x, std::ptrdiff_t count, std::ptrdiff_t d, const float* centre,
                float* out, float* norms) {
  constexpr int kLanes = 8;
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    const float* from = x + i * d;
    float* to = out + i * d;
    double lanes[kLanes] = {};
    std::ptrdiff_t k = 0;
    for (; k + kLanes <= d; k += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) {
        const float v = centre ? from[k + lane] - centre[k + lane] : from[k + lane];
        to[k + lane] = v;
        lanes[lane] += static_cast<double>(v) * v;
      }
    for (; k < d; ++k) {
      to[k] = centre ? from[k] - centre[k] : from[k];
      lanes[0] += static_cast<double>(to[k]) * to[k];
    }
    for (int lane = 1; lane < kLanes; ++lane) lanes[0] += lanes[lane];
    norms[i] = static_cast<float>(lanes[0]);
    if (lanes[0] <= kLongest) continue;
    norms[i] = __builtin_nanf("");
    for (k = 0; k < d; ++k) to[k] = norms[i];
  }
}

bool rbf_near(const PairForm& form, const TileSide& rows, const float* x, const TileSide& columns,
              const float* y, std::ptrdiff_t d, float* tile, std::ptrdiff_t stride) {
  const float far = kFar / form.gammas[form.count - 1];
  if (!(largest(rows.norms, rows.count) + largest(columns.norms, columns.count) > far))
    return false;
  for (std::ptrdiff_t i = 0; i < rows.count; ++i) {
    float* line = tile + i * stride;
    for (std::ptrdiff_t j = 0; j < columns.count; j += kWidth) {
      const Floats both = rows.norms[i] + load_floats(columns.norms + j);
      const Floats squared = not_negative(both - 2.0f * load_floats(line + j));
      store_floats(line + j, squared * -0.5f);
      const Floats near = (both > far) & (squared < both * kNear) ? splat(1.0f) : Floats{};
      if (sum_of(near) == 0) continue;
      for (int lane = 0; lane < kWidth && j + lane < columns.count; ++lane)
        if (near[lane] > 0)
          line[j + lane] = -0.5f * squared_distance(x + i * d, y + (j + lane) * d, d);
    }
  }
  return true;
}

double rbf_tile(const PairForm& form, const TileSide& rows, const TileSide& columns, float* tile,
                std::ptrdiff_t stride, Wanted wanted, bool same, bool leave_out) {
  switch (form.kind) {
    case PairKernel::kGaussian:
      if (same)  // |x - x|^2 is 0, whatever the product was rounded to
        for (std::ptrdiff_t i = 0; i < rows.count; ++i) tile[i * stride + i] = rows.norms[i];
      if (form.count == 1)
        return sum_wanted(OneGaussian{form.gammas[0]}, rows, columns, tile, stride, wanted, same,
                          leave_out);
      return sum_wanted(Gaussian{form}, rows, columns, tile, stride, wanted, same, leave_out);
    case PairKernel::kLaplacian:
      return sum_wanted(Laplacian{form.gammas[0]}, rows, columns, tile, stride, wanted, same,
                        leave_out);
    default:
      return sum_wanted(Polynomial{form}, rows, columns, tile, stride, wanted, same, leave_out);
  }
}

void rbf_signs(const float* x, std::ptrdiff_t rows, const float* y, std::ptrdiff_t columns,
               std::ptrdiff_t d, const float* tile, std::ptrdiff_t down, std::ptrdiff_t across,
               float* gradient) {
  for (std::ptrdiff_t i0 = 0; i0 < rows; i0 += kSignRows) {
    const std::ptrdiff_t last = rows - 1;  // a row too many repeats it and is not stored
    for (std::ptrdiff_t k = 0; k < d; k += kWidth) {
      const int n = static_cast<int>(d - k < kWidth ? d - k : kWidth);
      Floats own[kSignRows], sums[kSignRows] = {};
      for (int r = 0; r < kSignRows; ++r)
        own[r] = load_some(x + (i0 + r < last ? i0 + r : last) * d + k, n);
      for (std::ptrdiff_t j = 0; j < columns; ++j) {
        const Floats other = n == kWidth ? load_floats(y + j * d + k) : load_some(y + j * d + k, n);
        for (int r = 0; r < kSignRows; ++r) {
          const Floats c = splat(tile[(i0 + r < last ? i0 + r : last) * down + j * across]);
          const Floats one = splat(1.0f);
          const Floats sign = (own[r] > other ? one : Floats{}) - (own[r] < other ? one : Floats{});
          sums[r] += sign * c;
        }
      }
      for (int r = 0; r < kSignRows && i0 + r < rows; ++r) {
        float* to = gradient + (i0 + r) * d + k;
        store_some(to, load_some(to, n) - sums[r], n);
      }
    }
  }
}

}  // namespace pyfeat::PYFEAT_ISA
