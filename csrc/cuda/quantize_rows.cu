// One warp a row: what its scale needs is found in a first pass, written in a second one, which
// finds the row in the cache.
#include "common.cuh"
#include "numbers.cuh"
#include "quantize_rows.h"

namespace pyfeat::cuda {
namespace {

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xFFFFFFFF;
constexpr float kSmallestRow = 127.0f * 1.17549435e-38f;

// Calls work(numbers, first, count) for the parts of a row that are this lane's.
template <bool kWide, typename From, typename Work>
__device__ void for_numbers(const From* row, std::int64_t d, const Work& work) {
  const int lane = threadIdx.x % 32;
  float v[8];
  if (kWide) {
#pragma unroll 2
    for (std::int64_t i = lane * 8; i < d; i += 32 * 8) {
      load8(row + i, v);
      work(v, i, 8);
    }
  } else {
    for (std::int64_t i = lane; i < d; i += 32) {
      v[0] = to_float(row[i]);
      work(v, i, 1);
    }
  }
}

template <bool kWide, typename From, typename To>
__global__ void store_rows_warp_per_row(StoreRows work) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (at >= work.n) return;  // the whole warp
  const From* row = static_cast<const From*>(work.rows) + at * work.stride;
  To* out = static_cast<To*>(work.out) + at * work.d;
  const float scale = work.scales ? work.scales[at] : 1.0f;
  double inverse = 1.0;
  float factor = 1.0f;
  if (work.l2 || work.codes) {
    double sum = 0.0;
    unsigned largest = 0;  // bits of |x|: ordered as the numbers, NaN and infinity last
    for_numbers<kWide>(row, work.d, [&](const float (&v)[8], std::int64_t, int count) {
#pragma unroll
      for (int k = 0; k < (kWide ? 8 : 1); ++k) {
        if (work.l2) sum += static_cast<double>(v[k]) * v[k];
        largest = max(largest, __float_as_uint(v[k]) & 0x7FFFFFFFu);
      }
    });
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) {
      sum += __shfl_xor_sync(kAll, sum, lanes);
      largest = max(largest, __shfl_xor_sync(kAll, largest, lanes));
    }
    if (work.l2 && sum != 0.0) inverse = 1.0 / sqrt(sum);
    const bool finite = largest < 0x7F800000u;
    const float most = static_cast<float>(__uint_as_float(largest) * inverse);
    if (work.codes) {
      const bool counts = finite && most >= kSmallestRow;
      factor = counts ? __fdiv_rn(127.0f, most) : 0.0f;
      if (threadIdx.x % 32 == 0)
        work.codes[at] = !finite  ? __uint_as_float(0x7FC00000u)
                         : counts ? __fdiv_rn(most, 127.0f)
                                  : 0.0f;
    }
  }
  for_numbers<kWide>(row, work.d, [&](const float (&v)[8], std::int64_t i, int count) {
    float result[8];
#pragma unroll
    for (int k = 0; k < (kWide ? 8 : 1); ++k) {
      float x = work.scales ? __fmul_rn(v[k], scale) : v[k];
      if (work.l2) x = static_cast<float>(x * inverse);
      if (work.codes) x = factor == 0.0f ? 0.0f : __fmul_rn(x, factor);
      result[k] = x;
    }
    if (kWide)
      store8(result, out + i);
    else
      from_float(result[0], out + i);
  });
}

template <typename From, typename To>
void launch(const StoreRows& work, cudaStream_t stream) {
  const bool wide = work.d % 8 == 0 && aligned(work.rows, work.stride * bytes_of(work.from)) &&
                    aligned(work.out, work.d * bytes_of(work.to) * (work.to == 3 ? 2 : 1));
  const int blocks = divide_up(work.n, kWarps);
  if (wide)
    store_rows_warp_per_row<true, From, To><<<blocks, kWarps * 32, 0, stream>>>(work);
  else
    store_rows_warp_per_row<false, From, To><<<blocks, kWarps * 32, 0, stream>>>(work);
  check_launch("store_rows");
}

template <typename From>
void launch_from(const StoreRows& work, cudaStream_t stream) {
  switch (work.to) {
    case 0:
      return launch<From, float>(work, stream);
    case 1:
      return launch<From, __half>(work, stream);
    case 2:
      return launch<From, __nv_bfloat16>(work, stream);
    default:
      return launch<From, std::int8_t>(work, stream);
  }
}

}  // namespace

void store_rows(const StoreRows& work, void* stream) {
  if (work.n == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (work.from) {
    case 0:
      return launch_from<float>(work, on);
    case 1:
      return launch_from<__half>(work, on);
    case 2:
      return launch_from<__nv_bfloat16>(work, on);
    default:
      return launch_from<std::int8_t>(work, on);
  }
}

}  // namespace pyfeat::cuda
