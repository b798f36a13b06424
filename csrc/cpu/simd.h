// The few vector operations that kernels are written in, for the instruction set being compiled.
//
// A Vec is kLanes lanes of 16 bytes, and every operation stays inside its lane: what a kernel does
// for one lane (generic) it does for two (AVX2) and four (AVX-512).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(PYFEAT_AVX512) || defined(PYFEAT_ISA_avx2) || defined(__SSE2__)
#ifndef __clang__
// GCC 12 warns of a register that its own header leaves undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#ifndef __clang__
#pragma GCC diagnostic pop
#endif
#endif

namespace pyfeat::PYFEAT_ISA {

#if defined(PYFEAT_AVX512)
using Vec = __m512i;
constexpr int kLanes = 4;
#define PYFEAT_MM(name) _mm512_##name
#define PYFEAT_SI(name) _mm512_##name##_si512
#elif defined(PYFEAT_ISA_avx2)
using Vec = __m256i;
constexpr int kLanes = 2;
#define PYFEAT_MM(name) _mm256_##name
#define PYFEAT_SI(name) _mm256_##name##_si256
#else
// Vector extensions of GCC and Clang: whatever the target has, NEON or SSE2 or plain registers.
using Vec = std::uint8_t __attribute__((vector_size(16)));
using Words = std::int16_t __attribute__((vector_size(16)));
using Ints = std::int32_t __attribute__((vector_size(16)));
constexpr int kLanes = 1;
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "pairs of taps are packed low half first");
#endif

constexpr int kVecBytes = 16 * kLanes;

static inline Vec load(const void* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(void* p, Vec v) { std::memcpy(p, &v, sizeof v); }

#ifdef PYFEAT_MM

static inline Vec zero() { return PYFEAT_SI(setzero)(); }
static inline Vec splat32(std::int32_t value) { return PYFEAT_MM(set1_epi32)(value); }
static inline Vec add32(Vec a, Vec b) { return PYFEAT_MM(add_epi32)(a, b); }
template <int bits>
static inline Vec shift_left32(Vec v) {
  return PYFEAT_MM(slli_epi32)(v, bits);
}
template <int bits>
static inline Vec shift_right32(Vec v) {
  return PYFEAT_MM(srai_epi32)(v, bits);
}
// out32[i] = a16[2i] * b16[2i] + a16[2i + 1] * b16[2i + 1]
static inline Vec pair_sums(Vec a, Vec b) { return PYFEAT_MM(madd_epi16)(a, b); }
// a[0] b[0] a[1] b[1] ... of the low or the high half of a lane.
static inline Vec interleave_low8(Vec a, Vec b) { return PYFEAT_MM(unpacklo_epi8)(a, b); }
static inline Vec interleave_high8(Vec a, Vec b) { return PYFEAT_MM(unpackhi_epi8)(a, b); }
// A lane of `a`, then one of `b`, saturated.
static inline Vec narrow_to_int16(Vec a, Vec b) { return PYFEAT_MM(packs_epi32)(a, b); }
static inline Vec narrow_to_uint8(Vec a, Vec b) { return PYFEAT_MM(packus_epi16)(a, b); }

// Lane i is the 16 bytes at rows[i] + offset.
static inline Vec load_lanes(const std::uint8_t* const* rows, std::ptrdiff_t offset) {
  const auto lane = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + offset));
  };
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(lane(0)), lane(1), 1);
#ifdef PYFEAT_AVX512
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(lane(2)), lane(3), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
  return low;
#endif
}

// out[i] = v[index i], or 0 where the index is negative.
template <int... index>
static inline Vec shuffle(Vec v) {
  const std::int8_t lane[16] = {index...};
  const __m128i pattern = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lane));
#ifdef PYFEAT_AVX512
  return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(pattern));
#else
  return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(pattern));
#endif
}

#else

static inline Vec zero() { return Vec{}; }
static inline Vec splat32(std::int32_t value) {
  return reinterpret_cast<Vec>(Ints{value, value, value, value});
}
static inline Vec add32(Vec a, Vec b) {
  return reinterpret_cast<Vec>(reinterpret_cast<Ints>(a) + reinterpret_cast<Ints>(b));
}
template <int bits>
static inline Vec shift_left32(Vec v) {
  return reinterpret_cast<Vec>(reinterpret_cast<Ints>(v) * (1 << bits));
}
template <int bits>
static inline Vec shift_right32(Vec v) {
  return reinterpret_cast<Vec>(reinterpret_cast<Ints>(v) >> bits);
}
#ifdef __SSE2__
// Every x86-64 has these, and compilers do not find them by themselves.
static inline Vec pair_sums(Vec a, Vec b) {
  return reinterpret_cast<Vec>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
static inline Vec interleave_low8(Vec a, Vec b) {
  return reinterpret_cast<Vec>(
      _mm_unpacklo_epi8(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
static inline Vec interleave_high8(Vec a, Vec b) {
  return reinterpret_cast<Vec>(
      _mm_unpackhi_epi8(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
static inline Vec narrow_to_int16(Vec a, Vec b) {
  return reinterpret_cast<Vec>(
      _mm_packs_epi32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
static inline Vec narrow_to_uint8(Vec a, Vec b) {
  return reinterpret_cast<Vec>(
      _mm_packus_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
// out[i] = v[i + count], or 0 past the end.
template <int count>
static inline Vec drop_bytes(Vec v) {
  return reinterpret_cast<Vec>(_mm_srli_si128(reinterpret_cast<__m128i>(v), count));
}
#else
static inline Vec pair_sums(Vec a, Vec b) {
  const Ints x = reinterpret_cast<Ints>(a), y = reinterpret_cast<Ints>(b);
  const Ints low = (x << 16 >> 16) * (y << 16 >> 16);
  return reinterpret_cast<Vec>(low + (x >> 16) * (y >> 16));
}
static inline Vec interleave_low8(Vec a, Vec b) {
  return Vec{a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3],
             a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]};
}
static inline Vec interleave_high8(Vec a, Vec b) {
  return Vec{a[8],  b[8],  a[9],  b[9],  a[10], b[10], a[11], b[11],
             a[12], b[12], a[13], b[13], a[14], b[14], a[15], b[15]};
}
static inline Vec narrow_to_int16(Vec a, Vec b) {
  const auto clamp = [](Vec v) {
    Ints n = reinterpret_cast<Ints>(v);
    n = n < -32768 ? Ints{} - 32768 : n;
    return reinterpret_cast<Words>(n > 32767 ? Ints{} + 32767 : n);
  };
  const Words x = clamp(a), y = clamp(b);
  return reinterpret_cast<Vec>(Words{x[0], x[2], x[4], x[6], y[0], y[2], y[4], y[6]});
}
static inline Vec narrow_to_uint8(Vec a, Vec b) {
  const auto clamp = [](Vec v) {
    Words n = reinterpret_cast<Words>(v);
    n = n < 0 ? Words{} : n;
    return reinterpret_cast<Vec>(n > 255 ? Words{} + 255 : n);
  };
  const Vec x = clamp(a), y = clamp(b);
  return Vec{x[0], x[2], x[4], x[6], x[8], x[10], x[12], x[14],
             y[0], y[2], y[4], y[6], y[8], y[10], y[12], y[14]};
}
template <int count>
static inline Vec drop_bytes(Vec v) {
  std::uint8_t bytes[32] = {};
  store(bytes, v);
  return load(bytes + count);
}
#endif
static inline Vec load_lanes(const std::uint8_t* const* rows, std::ptrdiff_t offset) {
  return load(rows[0] + offset);
}

#endif

}  // namespace pyfeat::PYFEAT_ISA
