// A tile of 128 x 128 row pairs a block: products from shared memory, kernel values, sums.
//
// A thread holds 8 x 8 pairs: rows 4 (t / 16) + {0..3} and 64 more, columns 4 (t % 16) + {0..3} and
// 64 more, so that its reads of shared memory are 16 bytes wide and free of bank conflicts.
#include "common.cuh"
#include "rbf_sum.h"

namespace pyfeat::cuda {
namespace {

constexpr int kTile = 128;
constexpr int kStep = 16;  // features at a time
constexpr int kThreads = 256;
constexpr int kOwn = 8;
constexpr int kLine = kTile + 4;  // keeps 16-byte alignment, spreads the banks
enum Kind { kGaussian, kLaplacian, kPolynomial };

__device__ int own_index(int lane, int r) { return r / 4 * 64 + lane * 4 + r % 4; }

// shared[k][row] = rows first .. first + 127 at features k0 .. k0 + 15; rows past `count` are 0.
__device__ void load_rows(const float* rows, long long first, long long count, long long d,
                          long long k0, float (*shared)[kLine]) {
  for (int at = threadIdx.x; at < kTile * kStep / 4; at += kThreads) {
    const int row = at / (kStep / 4), k = at % (kStep / 4) * 4;
    float4 v = make_float4(0, 0, 0, 0);
    if (first + row < count)
      v = *reinterpret_cast<const float4*>(rows + (first + row) * d + k0 + k);
    shared[k][row] = v.x;
    shared[k + 1][row] = v.y;
    shared[k + 2][row] = v.z;
    shared[k + 3][row] = v.w;
  }
}

__device__ void load_own(const float* line, int lane, float (&own)[kOwn]) {
  const float4 low = *reinterpret_cast<const float4*>(line + lane * 4);
  const float4 high = *reinterpret_cast<const float4*>(line + 64 + lane * 4);
  own[0] = low.x, own[1] = low.y, own[2] = low.z, own[3] = low.w;
  own[4] = high.x, own[5] = high.y, own[6] = high.z, own[7] = high.w;
}

template <int kKind>
__device__ float kernel_value(const RbfSlab& s, float product, float x_norm, float y_norm,
                              float& slope) {
  if (kKind == kLaplacian) {
    const float gamma = s.numbers[0], k = expf(-gamma * product);
    slope = gamma * k;
    return k;
  }
  if (kKind == kPolynomial) {
    const float gamma = s.numbers[0], base = gamma * product + s.numbers[1];
    float power = 1;
    for (int i = 1; i < s.number; ++i) power *= base;
    slope = power * gamma * s.number;
    return power * base;
  }
  float squared = x_norm + y_norm - 2 * product;
  squared = squared < 0 ? 0 : squared;  // NaN stays
  float sum = 0;
  slope = 0;
  for (int b = 0; b < s.number; ++b) {
    const float gamma = s.numbers[b], term = expf(-gamma * squared);
    sum += term;
    slope += 2 * gamma * term;
  }
  return sum;
}

// to[i] = sum over the 16 threads that share row (or column) i of parts[.][i], in a fixed order.
__device__ void add_up(float (*parts)[kLine], int lane, int other, const float (&own)[kOwn],
                       float* to, long long room) {
  __syncthreads();
  for (int r = 0; r < kOwn; ++r) parts[other][own_index(lane, r)] = own[r];
  __syncthreads();
  const int i = threadIdx.x;
  if (i >= kTile || i >= room) return;
  float sum = 0;
  for (int part = 0; part < 16; ++part) sum += parts[part][i];
  to[i] = sum;
}

template <int kKind>
__device__ void multiply(const RbfSlab& s, long long i0, long long j0, float (*left)[kLine],
                         float (*right)[kLine], float (&products)[kOwn][kOwn]) {
  const int down = threadIdx.x / 16, across = threadIdx.x % 16;
  for (long long k0 = 0; k0 < s.d; k0 += kStep) {
    __syncthreads();
    load_rows(s.x, i0, s.count, s.d, k0, left);
    load_rows(s.y, j0, s.m, s.d, k0, right);
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < kStep; ++k) {
      float a[kOwn], b[kOwn];
      load_own(left[k], down, a);
      load_own(right[k], across, b);
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c)
          products[r][c] = kKind == kLaplacian ? products[r][c] + fabsf(a[r] - b[c])
                                               : products[r][c] + a[r] * b[c];
    }
  }
}

// Grid: tiles across, tiles down. Tiles wholly below the diagonal stay 0, as the caller left them.
template <int kKind>
__global__ void __launch_bounds__(kThreads) tile_sums(RbfSlab s) {
  __shared__ __align__(16) float shared[2 * kStep][kLine];
  const long long i0 = static_cast<long long>(blockIdx.y) * kTile;
  const long long j0 = static_cast<long long>(blockIdx.x) * kTile;
  const int down = threadIdx.x / 16, across = threadIdx.x % 16;
  float products[kOwn][kOwn] = {};
  const bool below = s.within != 0 && s.first + i0 > j0 + kTile - 1;
  if (below && s.coefficients == nullptr) return;
  if (!below) multiply<kKind>(s, i0, j0, shared, shared + kStep, products);
  float row_sum[kOwn] = {}, row_pull[kOwn] = {}, column_sum[kOwn] = {}, column_pull[kOwn] = {};
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    const long long i = i0 + own_index(down, r);
    if (i >= s.count) continue;
    const float x_norm = s.x_norms[i], x_weight = s.x_weights[i];
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
      const long long j = j0 + own_index(across, c);
      if (j >= s.m) continue;
      float product = products[r][c], slope, k;
      float share = 1;
      if (s.within != 0) {
        share = s.first + i < j ? 1.0f : s.first + i == j && s.within == 1 ? 0.5f : 0.0f;
        // |x - x|^2 is 0, whatever the product was rounded to
        if (kKind == kGaussian && s.first + i == j) product = x_norm;
      }
      k = kernel_value<kKind>(s, product, x_norm, s.y_norms[j], slope);
      // NaN must not count twice over. A row left out with itself counts only where it is NaN:
      // what is infinite there is no pair's.
      const bool left_out = s.within == 2 && s.first + i == j && x_norm == x_norm;
      if (s.within != 0 && (s.first + i > j || left_out)) {
        k = slope = 0;
      } else {
        k *= share;
        slope *= share;
      }
      const float y_weight = s.y_weights[j], coefficient = slope * (x_weight * y_weight);
      row_sum[r] += y_weight * k;
      column_sum[c] += x_weight * k;
      row_pull[r] += coefficient;
      column_pull[c] += coefficient;
      if (s.coefficients) s.coefficients[i * s.m + j] = coefficient;
    }
  }
  float* rows = s.row_sums + blockIdx.x * 2 * s.count + i0;
  float* columns = s.column_sums + blockIdx.y * 2 * s.m + j0;
  add_up(shared, down, across, row_sum, rows, s.count - i0);
  add_up(shared, across, down, column_sum, columns, s.m - j0);
  if (s.coefficients == nullptr) return;
  add_up(shared, down, across, row_pull, rows + s.count, s.count - i0);
  add_up(shared, across, down, column_pull, columns + s.m, s.m - j0);
}

// c sign(x - y), NaN where c is.
__device__ float signed_by(float x, float y, float c) {
  return c * (static_cast<float>(x > y) - static_cast<float>(x < y));
}

constexpr int kSignRows = 128, kSignFeatures = 32, kSignStep = 32;
constexpr int kSignShort = 8;  // steps of a short sum
constexpr int kPer = 4;        // rows and features of a thread

// coefficients[row][j] = c of rows first .. first + 127 at j0 .. j0 + 31, 0 past `count`, `end`.
__device__ void load_coefficients(const RbfSigns& s, long long first, long long j0, long long end,
                                  float (*coefficients)[kSignStep + 1]) {
  for (int at = threadIdx.x; at < kSignRows * kSignStep; at += kThreads) {
    // Threads next to each other read what is next to each other.
    const int row = s.across == 1 ? at / kSignStep : at % kSignRows;
    const int step = s.across == 1 ? at % kSignStep : at / kSignRows;
    const long long i = first + row, j = j0 + step;
    const bool there = i < s.count && j < end;
    coefficients[row][step] = there ? s.coefficients[i * s.down + j * s.across] : 0.0f;
  }
}

// Grid: tiles of 32 features, tiles of 128 rows.
__global__ void __launch_bounds__(kThreads) sign_sums(RbfSigns s) {
  __shared__ __align__(16) float others[kSignStep][kSignFeatures];
  __shared__ float coefficients[kSignRows][kSignStep + 1];  // the 1 spreads the banks
  const long long i0 = static_cast<long long>(blockIdx.x) * kSignRows;
  const long long k0 = static_cast<long long>(blockIdx.y) * kSignFeatures;
  const int down = threadIdx.x / 8 * kPer, across = threadIdx.x % 8 * kPer;
  float4 own[kPer];
  float sums[kPer][4] = {}, all[kPer][4] = {};
  for (int r = 0; r < kPer; ++r) {
    own[r] = make_float4(0, 0, 0, 0);
    const long long i = i0 + down + r;
    if (i < s.count) own[r] = *reinterpret_cast<const float4*>(s.own + i * s.d + k0 + across);
  }
  const long long begin = s.role == 1 ? s.first + i0 : 0;
  long long end = s.others;
  if (s.role == 2 && i0 + kSignRows - s.first < end) end = i0 + kSignRows - s.first;
  for (long long j0 = begin; j0 < end; j0 += kSignStep) {
    __syncthreads();
    load_coefficients(s, i0, j0, end, coefficients);
    const int step = threadIdx.x / 8;
    float4 other = make_float4(0, 0, 0, 0);
    if (j0 + step < end)
      other = *reinterpret_cast<const float4*>(s.other + (j0 + step) * s.d + k0 + across);
    *reinterpret_cast<float4*>(&others[step][across]) = other;
    __syncthreads();
#pragma unroll 4
    for (int j = 0; j < kSignStep; ++j) {
      const float4 y = *reinterpret_cast<const float4*>(&others[j][across]);
#pragma unroll
      for (int r = 0; r < kPer; ++r) {
        const float c = coefficients[down + r][j];
        sums[r][0] += signed_by(own[r].x, y.x, c);
        sums[r][1] += signed_by(own[r].y, y.y, c);
        sums[r][2] += signed_by(own[r].z, y.z, c);
        sums[r][3] += signed_by(own[r].w, y.w, c);
      }
    }
    // Long sums are sums of short ones: rounding would grow with the number of rows.
    const long long done = (j0 - begin) / kSignStep + 1;
    if (done % kSignShort == 0 || j0 + kSignStep >= end) {
      for (int r = 0; r < kPer; ++r)
        for (int v = 0; v < 4; ++v) {
          all[r][v] += sums[r][v];
          sums[r][v] = 0;
        }
    }
  }
  for (int r = 0; r < kPer; ++r) {
    const long long i = i0 + down + r;
    if (i < s.count)
      *reinterpret_cast<float4*>(s.out + i * s.d + k0 + across) =
          make_float4(-all[r][0], -all[r][1], -all[r][2], -all[r][3]);
  }
}

}  // namespace

void rbf_sum(const RbfSlab& slab, void* stream) {
  const dim3 grid(divide_up(slab.m, kTile), divide_up(slab.count, kTile));
  const auto on = static_cast<cudaStream_t>(stream);
  if (slab.kind == kGaussian)
    tile_sums<kGaussian><<<grid, kThreads, 0, on>>>(slab);
  else if (slab.kind == kLaplacian)
    tile_sums<kLaplacian><<<grid, kThreads, 0, on>>>(slab);
  else
    tile_sums<kPolynomial><<<grid, kThreads, 0, on>>>(slab);
  check_launch("rbf_sum");
}

void rbf_signs(const RbfSigns& signs, void* stream) {
  const dim3 grid(divide_up(signs.count, kSignRows), divide_up(signs.d, kSignFeatures));
  const auto on = static_cast<cudaStream_t>(stream);
  sign_sums<<<grid, kThreads, 0, on>>>(signs);
  check_launch("rbf_signs");
}

}  // namespace pyfeat::cuda
