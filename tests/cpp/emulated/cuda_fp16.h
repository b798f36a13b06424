#pragma once
#include "cuda_runtime.h"
struct __half {
  std::uint16_t bits;
};
inline float __half2float(__half x) {
  const unsigned sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7FFFu) << 13;
  const float size = __uint_as_float(rest) * 0x1p112f;
  return __uint_as_float(sign | (size < 65536 ? __float_as_uint(size) : rest | 0x7F800000u));
}
inline __half __float2half_rn(float x) {
  const unsigned sign = __float_as_uint(x) >> 16 & 0x8000u, bits = __float_as_uint(std::fabs(x));
  unsigned rest = (bits + 0xFFF + (bits >> 13 & 1) - (112u << 23)) >> 13;
  if (x != x) return {0x7FFF};
  if (std::fabs(x) >= 65520) rest = 0x7C00;
  if (std::fabs(x) < 0x1p-14f) rest = static_cast<unsigned>(std::nearbyint(std::fabs(x) * 0x1p24f));
  return {static_cast<std::uint16_t>(sign | rest)};
}
