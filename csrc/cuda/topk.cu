// A block of 256 threads makes 64 x 64 keys, a thread 4 x 4 of them: panels of 32 numbers of 64
// queries and 64 rows are turned into shared memory as float32, 16 bytes a load where rows allow
// it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "common.cuh"
#include "topk.h"

namespace pyfeat::cuda {
namespace {

constexpr int kTile = 64;
constexpr int kDepth = 32;
constexpr int kThreads = 256;
constexpr int kPitch = kTile + 4;  // keeps float4 aligned, and columns off one bank

__device__ float to_float(float x) { return x; }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float to_float(signed char x) { return static_cast<float>(x); }

// panel[depth][row] = rows [first, first + 64) at depths [k0, k0 + 32); 0 beyond the array.
// With kWide, d and the stride are whole numbers of 16 bytes, and so is the address.
template <typename Item, bool kWide>
__device__ void load_panel(const Item* rows, long long stride, long long count, long long d,
                           long long first, long long k0, float (*panel)[kPitch]) {
  constexpr int kItems = kWide ? 16 / static_cast<int>(sizeof(Item)) : 1;
  constexpr int kPieces = kDepth / kItems;  // of a row
  for (int at = threadIdx.x; at < kTile * kPieces; at += kThreads) {
    const int row = at / kPieces, depth = at % kPieces * kItems;
    const bool inside = first + row < count && k0 + depth < d;
    const Item* from = rows + (first + row) * stride + k0 + depth;
    alignas(16) Item items[kItems];
    if (inside) {
      if constexpr (kWide)
        *reinterpret_cast<uint4*>(items) = __ldg(reinterpret_cast<const uint4*>(from));
      else
        items[0] = *from;
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) panel[depth + i][row] = inside ? to_float(items[i]) : 0.0f;
  }
}

template <typename Item, bool kWide>
__global__ void __launch_bounds__(kThreads) keys_kernel(KeysOf work) {
  __shared__ __align__(16) float left[kDepth][kPitch];
  __shared__ __align__(16) float right[kDepth][kPitch];
  const long long row = static_cast<long long>(blockIdx.x) * kTile;
  const int across = threadIdx.x % 16 * 4, down = threadIdx.x / 16 * 4;
  const Item* base = static_cast<const Item*>(work.base);
  // The grid is at most 65535 high.
  for (long long query = static_cast<long long>(blockIdx.y) * kTile; query < work.n;
       query += static_cast<long long>(gridDim.y) * kTile) {
    float sums[4][4] = {};
    for (long long k0 = 0; k0 < work.d; k0 += kDepth) {
      __syncthreads();
      load_panel<float, kWide>(work.queries, work.d, work.n, work.d, query, k0, left);
      load_panel<Item, kWide>(base, work.row_stride, work.m, work.d, row, k0, right);
      __syncthreads();
#pragma unroll 8
      for (int k = 0; k < kDepth; ++k) {
        const float4 a = *reinterpret_cast<const float4*>(&left[k][down]);
        const float4 b = *reinterpret_cast<const float4*>(&right[k][across]);
        const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
      }
    }
    for (int j = 0; j < 4; ++j) {
      const long long at = row + across + j;
      if (at >= work.m) break;
      const float mul = work.mul[at], add = work.add[at];
      for (int i = 0; i < 4 && query + down + i < work.n; ++i) {
        const float key = fmaf(sums[i][j], mul, add);
        work.keys[(query + down + i) * work.m + at] = key == key ? key : -INFINITY;
      }
    }
  }
}

template <typename Item>
void launch(const KeysOf& work, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(divide_up(work.m, kTile)),
                  static_cast<unsigned>(std::min(divide_up(work.n, kTile), 65535)));
  constexpr long long kItems = 16 / sizeof(Item);
  const auto address = reinterpret_cast<std::uintptr_t>(work.base);
  const bool wide = address % 16 == 0 && reinterpret_cast<std::uintptr_t>(work.queries) % 16 == 0 &&
                    work.row_stride % kItems == 0 && work.d % kItems == 0 && work.d % 4 == 0;
  if (wide)
    keys_kernel<Item, true><<<grid, kThreads, 0, stream>>>(work);
  else
    keys_kernel<Item, false><<<grid, kThreads, 0, stream>>>(work);
}

}  // namespace

void topk_keys(const KeysOf& work, std::uintptr_t stream) {
  if (work.n == 0 || work.m == 0) return;
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  if (work.item == 0)
    launch<float>(work, queue);
  else if (work.item == 1)
    launch<__half>(work, queue);
  else if (work.item == 2)
    launch<__nv_bfloat16>(work, queue);
  else
    launch<signed char>(work, queue);
  check_launch("topk_keys");
}

}  // namespace pyfeat::cuda
