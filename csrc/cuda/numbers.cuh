// Numbers of the stored types, eight at a time: 16 bytes a load or a multiple of it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pyfeat::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(std::int8_t x) { return static_cast<float>(x); }

__device__ inline void from_float(float x, float* out) { *out = x; }
__device__ inline void from_float(float x, __half* out) { *out = __float2half_rn(x); }
__device__ inline void from_float(float x, __nv_bfloat16* out) { *out = __float2bfloat16_rn(x); }
__device__ inline void from_float(float x, std::int8_t* out) {
  *out = static_cast<std::int8_t>(__float2int_rn(x));
}

// p must be aligned to 8 numbers, at most 16 bytes.
template <typename T>
__device__ inline void load8(const T* p, float (&v)[8]) {
  constexpr int kBytes = 8 * sizeof(T);
  alignas(16) T raw[8];
  if constexpr (kBytes == 8) {
    *reinterpret_cast<uint2*>(raw) = *reinterpret_cast<const uint2*>(p);
  } else {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i)
      reinterpret_cast<uint4*>(raw)[i] = reinterpret_cast<const uint4*>(p)[i];
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = to_float(raw[i]);
}

template <typename T>
__device__ inline void store8(const float (&v)[8], T* p) {
  constexpr int kBytes = 8 * sizeof(T);
  alignas(16) T raw[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) from_float(v[i], raw + i);
  if constexpr (kBytes == 8) {
    *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(raw);
  } else {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i)
      reinterpret_cast<uint4*>(p)[i] = reinterpret_cast<const uint4*>(raw)[i];
  }
}

inline std::int64_t bytes_of(int item) { return item == 0 ? 4 : item == 3 ? 1 : 2; }
inline bool aligned(const void* p, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0 && bytes % 16 == 0;
}

}  // namespace pyfeat::cuda
