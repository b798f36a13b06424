// Stored numbers to float32 and back, for the instruction set being compiled.
#pragma once

#include "item.h"
#include "simd_float.h"

namespace pyfeat::PYFEAT_ISA {

static inline float bits_to_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
static inline std::uint32_t float_to_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

static inline float from_bfloat16(std::uint16_t x) {
  return bits_to_float(static_cast<std::uint32_t>(x) << 16);
}
// Nearest, ties to even; NaN stays NaN.
static inline std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = float_to_bits(x);
  const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<std::uint16_t>(x != x ? (bits >> 16) | 0x40 : rounded);
}

// Of many; from one compiler to the next the same bits.
static inline void to_bfloat16s(const float* x, int n, std::uint16_t* out) {
  for (int i = 0; i < n; ++i) out[i] = to_bfloat16(x[i]);
}

static inline float from_float16(std::uint16_t x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(x & 0x7FFF) << 13;
  // 2^112 moves the exponent's bias from 15 to 127 and makes subnormal numbers normal.
  const float size = bits_to_float(rest) * 5.192296858534828e33f;
  const bool special = (x & 0x7C00) == 0x7C00;
  return bits_to_float(sign | (special ? rest | 0x7F800000u : float_to_bits(size)));
}

static inline const void* skip_items(const void* data, Item item, std::ptrdiff_t n) {
  return static_cast<const std::uint8_t*>(data) + n * bytes_of(item);
}

// Rows of a file may begin at any byte.
using AnyFloat __attribute__((aligned(1))) = float;
using AnyBits16 __attribute__((aligned(1))) = std::uint16_t;

// out[i] = scale * data[i], i < n
static inline void to_floats(const void* data, Item item, std::ptrdiff_t n, float scale,
                             float* out) {
  std::ptrdiff_t i = 0;
  switch (item) {
    case Item::kFloat32: {
      const AnyFloat* x = static_cast<const AnyFloat*>(data);
      for (; i < n; ++i) out[i] = scale * x[i];
      return;
    }
    case Item::kInt8: {
      const std::int8_t* x = static_cast<const std::int8_t*>(data);
      for (; i < n; ++i) out[i] = scale * static_cast<float>(x[i]);
      return;
    }
    case Item::kBFloat16: {
      const AnyBits16* x = static_cast<const AnyBits16*>(data);
      for (; i < n; ++i) out[i] = scale * from_bfloat16(x[i]);
      return;
    }
    case Item::kFloat16: {
      const AnyBits16* x = static_cast<const AnyBits16*>(data);
#if defined(PYFEAT_AVX512)
      for (; i + 16 <= n; i += 16)
        store_floats(out + i, reinterpret_cast<Floats>(_mm512_cvtph_ps(
                                  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i)))) *
                                  scale);
#elif defined(PYFEAT_ISA_avx2)
      for (; i + 8 <= n; i += 8)
        store_floats(out + i, reinterpret_cast<Floats>(_mm256_cvtph_ps(
                                  _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i)))) *
                                  scale);
#endif
      for (; i < n; ++i) out[i] = scale * from_float16(x[i]);
      return;
    }
  }
}

}  // namespace pyfeat::PYFEAT_ISA
