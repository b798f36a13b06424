// Vectors of stored numbers, widened to float32 on the way into registers.
#pragma once

#include "gemm.h"
#include "simd_float.h"

namespace pyfeat::PYFEAT_ISA {

template <Item item>
constexpr int kItemBytes = item == Item::kFloat32 ? 4
                           : item == Item::kInt8  ? 1
                                                  : 2;

#if !defined(PYFEAT_AVX512) && !defined(PYFEAT_ISA_avx2)
using Uint32s = std::uint32_t __attribute__((vector_size(kWidth * sizeof(float))));

// As from_float16 of convert.h.
static inline Floats widen_float16(Uint32s x) {
  const Uint32s rest = (x & 0x7FFF) << 13;
  const Floats size = reinterpret_cast<Floats>(rest) * 5.192296858534828e33f;
  const Uint32s special = reinterpret_cast<Uint32s>((x & 0x7C00) == 0x7C00);
  return reinterpret_cast<Floats>((x & 0x8000) << 16 | (special & 0x7F800000) | (special & rest) |
                                  (~special & reinterpret_cast<Uint32s>(size)));
}
#endif

// kWidth numbers.
template <Item item>
static inline Floats load_items(const void* from) {
  if constexpr (item == Item::kFloat32) {
    return load_floats(static_cast<const float*>(from));
  } else {
#if defined(PYFEAT_AVX512)
    if constexpr (item == Item::kInt8)
      return _mm512_cvtepi32_ps(
          _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
    const __m256i x = _mm256_loadu_si256(static_cast<const __m256i*>(from));
    if constexpr (item == Item::kFloat16) return _mm512_cvtph_ps(x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
#elif defined(PYFEAT_ISA_avx2)
    if constexpr (item == Item::kInt8)
      return _mm256_cvtepi32_ps(
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from))));
    const __m128i x = _mm_loadu_si128(static_cast<const __m128i*>(from));
    if constexpr (item == Item::kFloat16) return _mm256_cvtph_ps(x);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
#else
    if constexpr (item == Item::kInt8) {
#ifdef __SSE2__
      std::int32_t four;
      std::memcpy(&four, from, sizeof four);
      __m128i v = _mm_cvtsi32_si128(four);
      v = _mm_unpacklo_epi8(v, v);
      return _mm_cvtepi32_ps(_mm_srai_epi32(_mm_unpacklo_epi16(v, v), 24));
#else
      std::int8_t x __attribute__((vector_size(kWidth)));
      std::memcpy(&x, from, sizeof x);
      return __builtin_convertvector(__builtin_convertvector(x, Int32s), Floats);
#endif
    } else {
      std::uint16_t x __attribute__((vector_size(kWidth * 2)));
      std::memcpy(&x, from, sizeof x);
      const Uint32s wide = __builtin_convertvector(x, Uint32s);
      if constexpr (item == Item::kFloat16) return widen_float16(wide);
      return reinterpret_cast<Floats>(wide << 16);
    }
#endif
  }
}

// The first n <= kWidth numbers; the others are 0. Touches nothing beyond them.
template <Item item>
static inline Floats load_some_items(const void* from, int n) {
  if constexpr (item == Item::kFloat32) return load_some(static_cast<const float*>(from), n);
  std::uint8_t room[kWidth * kItemBytes<item>] = {};
  std::memcpy(room, from, static_cast<std::size_t>(n) * kItemBytes<item>);
  return load_items<item>(room);
}

// sums[i] is the sum of the numbers of v[i], i < 4
static inline void four_sums(const Floats* v, float* sums) {
#if defined(PYFEAT_AVX512) || defined(PYFEAT_ISA_avx2) || defined(__SSE2__)
  __m128 q[4];
  for (int i = 0; i < 4; ++i) {
#if defined(PYFEAT_AVX512)
    const __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps(v[i], 1));
    q[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(PYFEAT_ISA_avx2)
    q[i] = _mm_add_ps(_mm256_castps256_ps128(v[i]), _mm256_extractf128_ps(v[i], 1));
#else
    q[i] = v[i];
#endif
  }
  // a0 + a2, b0 + b2, a1 + a3, b1 + b3
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(q[0], q[1]), _mm_unpackhi_ps(q[0], q[1]));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(q[2], q[3]), _mm_unpackhi_ps(q[2], q[3]));
  _mm_storeu_ps(sums, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
#else
  for (int i = 0; i < 4; ++i) sums[i] = sum_of(v[i]);
#endif
}

}  // namespace pyfeat::PYFEAT_ISA
