// Vectors of floats for the instruction set being compiled: + - * / and ?: work on them as they
// are.
#pragma once

#include "simd.h"

namespace pyfeat::PYFEAT_ISA {

#if defined(PYFEAT_AVX512)
constexpr int kWidth = 16;
#elif defined(PYFEAT_ISA_avx2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

using Floats = float __attribute__((vector_size(kWidth * sizeof(float))));
using Int32s = std::int32_t __attribute__((vector_size(kWidth * sizeof(float))));

static inline Floats load_floats(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store_floats(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
static inline Floats splat(float x) {
#if defined(PYFEAT_AVX512)
  return _mm512_set1_ps(x);
#elif defined(PYFEAT_ISA_avx2)
  return _mm256_set1_ps(x);
#else
  return Floats{x, x, x, x};  // `Floats{} + x` would have to turn -0 into 0
#endif
}

#if defined(PYFEAT_ISA_avx2)
static inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first n <= kWidth numbers; the others are 0. Touches nothing beyond them.
static inline Floats load_some(const float* p, int n) {
#if defined(PYFEAT_AVX512)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(PYFEAT_ISA_avx2)
  return _mm256_maskload_ps(p, first_lanes(n));
#else
  Floats v{};
  std::memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(float));
  return v;
#endif
}
static inline void store_some(float* p, Floats v, int n) {
#if defined(PYFEAT_AVX512)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#elif defined(PYFEAT_ISA_avx2)
  _mm256_maskstore_ps(p, first_lanes(n), v);
#else
  std::memcpy(p, &v, static_cast<std::size_t>(n) * sizeof(float));
#endif
}

static inline float sum_of(Floats v) {
  float parts[kWidth];
  store_floats(parts, v);
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  return parts[0];
}

// exp(x), relative error below 1.5e-7; 0 below -87.3, infinity above 88.7, NaN stays NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) by its Taylor polynomial of degree 7, whose first
// term left out is below 6e-9; 2^n goes into the exponent in two steps, for n may reach 128.
static inline Floats exp_of(Floats x) {
  const Floats shifter = splat(12582912.0f);  // 1.5 * 2^23: rounds to an integer by being added
  Floats t = x < -88.0f ? splat(-88.0f) : x;
  t = t > 89.0f ? splat(89.0f) : t;
  const Floats shifted = t * 1.44269504f + shifter;
  const Floats n = shifted - shifter;
  const Floats r = (t - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats p = splat(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Low bits of `shifted` hold n.
  const Int32s whole = reinterpret_cast<Int32s>(shifted) - 0x4B400000;
  const Int32s half = whole >> 1;
  const Floats low = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats high = reinterpret_cast<Floats>((whole - half + 127) << 23);
  p = p * low * high;
  return x < -87.3f ? Floats{} : p;
}

}  // namespace pyfeat::PYFEAT_ISA
