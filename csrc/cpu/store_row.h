// What happens to a row of floats before it is written: L2, then the type it is stored in.
#pragma once

#include "convert.h"

namespace pyfeat::PYFEAT_ISA {

using Int8s = std::int8_t __attribute__((vector_size(kWidth)));
using UInt16s = std::uint16_t __attribute__((vector_size(kWidth * 2)));
using UInt32s = std::uint32_t __attribute__((vector_size(kWidth * 4)));

constexpr float kLargestCode = 127.0f;
// Smaller rows count as zero: the scale of others is a normal number, and its inverse finite.
constexpr float kSmallestRow = kLargestCode * 1.17549435e-38f;

// Nearest, ties to even; from 65520 on infinity; NaN stays NaN.
static inline std::uint16_t to_float16(float x) {
  const std::uint32_t bits = float_to_bits(x), size = bits & 0x7FFFFFFF;
  const std::uint32_t sign = (bits >> 16) & 0x8000;
  if (size > 0x7F800000) return static_cast<std::uint16_t>(sign | 0x7E00 | ((size >> 13) & 0x3FF));
  if (size >= 0x477FF000) return static_cast<std::uint16_t>(sign | 0x7C00);
  // Below 2^-14 the steps are 2^-24, as those of the floats from 1/2 to 1.
  if (size < 0x38800000)
    return static_cast<std::uint16_t>(sign |
                                      (float_to_bits(bits_to_float(size) + 0.5f) - 0x3F000000));
  return static_cast<std::uint16_t>(sign |
                                    ((size - 0x38000000 + 0xFFF + ((size >> 13) & 1)) >> 13));
}

// One vector to memory in another type. `factor` counts for int8 only.
struct AsFloat32 {
  using Number = float;
  static void store(Floats v, float, float* out) { store_floats(out, v); }
};
struct AsBFloat16 {
  using Number = std::uint16_t;
  static void store(Floats v, float, std::uint16_t* out) {
    const UInt32s bits = reinterpret_cast<UInt32s>(v);
    const UInt32s rounded = bits + 0x7FFF + ((bits >> 16) & 1);
    const UInt32s kept = (v != v) ? (bits | 0x400000) : rounded;
    const UInt16s high = __builtin_convertvector(kept >> 16, UInt16s);
    std::memcpy(out, &high, sizeof high);
  }
};
struct AsFloat16 {
  using Number = std::uint16_t;
  static void store(Floats v, float, std::uint16_t* out) {
#if defined(PYFEAT_AVX512)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0));
#elif defined(PYFEAT_ISA_avx2)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0));
#else
    for (int i = 0; i < kWidth; ++i) out[i] = to_float16(v[i]);
#endif
  }
};
// Codes, for |factor * v| < 2^22.
struct AsInt8 {
  using Number = std::int8_t;
  static void store(Floats v, float factor, std::int8_t* out) {
#if defined(PYFEAT_AVX512)
    const __m512i codes = _mm512_cvtps_epi32(reinterpret_cast<__m512>(v * factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(codes));
#elif defined(PYFEAT_ISA_avx2)
    const __m256i codes = _mm256_cvtps_epi32(reinterpret_cast<__m256>(v * factor));
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(words, words));
#else
    // 1.5 * 2^23 rounds to an integer by being added; the low bits hold it. The product must be
    // rounded first, not fused with the sum: every instruction set gives the same codes.
    Floats product = v * factor;
    __asm__("" : "+m"(product));
    const Floats shifted = product + splat(12582912.0f);
    const Int8s codes =
        __builtin_convertvector(reinterpret_cast<Int32s>(shifted) - 0x4B400000, Int8s);
    std::memcpy(out, &codes, sizeof codes);
#endif
  }
};

template <typename As>
static inline void store_as(const float* row, std::ptrdiff_t n, float factor, void* out) {
  using Number = typename As::Number;
  Number* to = static_cast<Number*>(out);
  std::ptrdiff_t i = 0;
  for (; i + kWidth <= n; i += kWidth) As::store(load_floats(row + i), factor, to + i);
  if (i == n) return;
  Number last[kWidth];
  As::store(load_some(row + i, static_cast<int>(n - i)), factor, last);
  std::memcpy(to + i, last, static_cast<std::size_t>(n - i) * sizeof(Number));
}

static inline void store_floats_as(const float* row, std::ptrdiff_t n, Item item, float factor,
                                   void* out) {
  switch (item) {
    case Item::kFloat32:
      return store_as<AsFloat32>(row, n, factor, out);
    case Item::kFloat16:
      return store_as<AsFloat16>(row, n, factor, out);
    case Item::kBFloat16:
      return store_as<AsBFloat16>(row, n, factor, out);
    case Item::kInt8:
      return store_as<AsInt8>(row, n, factor, out);
  }
}

// The largest |x|, or what stands above every number when x holds NaN or infinity: as bits, for
// the bits of positive floats are ordered as they are.
static inline std::int32_t largest_bits(const float* row, std::ptrdiff_t n, std::int32_t before) {
  Int32s first{}, second{};
  const auto larger = [](Int32s a, const float* p) {
    const Int32s bits = reinterpret_cast<Int32s>(load_floats(p)) & 0x7FFFFFFF;
    return bits > a ? bits : a;
  };
  std::ptrdiff_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    first = larger(first, row + i);
    second = larger(second, row + i + kWidth);
  }
  first = first > second ? first : second;
  std::int32_t most = before;
  for (; i < n; ++i) {
    const auto bits = static_cast<std::int32_t>(float_to_bits(row[i]) & 0x7FFFFFFF);
    most = bits > most ? bits : most;
  }
  for (int k = 0; k < kWidth; ++k) most = first[k] > most ? first[k] : most;
  return most;
}

// How the codes of a row are made: x is near scale * code, and code is factor * x rounded.
struct CodeScale {
  float scale, factor;
};
// From `largest_bits`: NaN when the row holds NaN or infinity, 0 when it counts as zero; codes are
// then 0, which a factor of 0 does not give for NaN: the caller writes zeros.
static inline CodeScale code_scale(std::int32_t bits) {
  if (bits >= 0x7F800000) return {bits_to_float(0x7FC00000), 0.0f};
  const float most = bits_to_float(static_cast<std::uint32_t>(bits));
  if (most < kSmallestRow) return {0.0f, 0.0f};
  return {most / kLargestCode, kLargestCode / most};
}

// Writes a whole row; `scale` is set for int8 only.
static inline void store_row(const float* row, std::ptrdiff_t n, Item item, void* out,
                             float* scale) {
  CodeScale codes{0.0f, 1.0f};
  if (item == Item::kInt8) {
    codes = code_scale(largest_bits(row, n, 0));
    *scale = codes.scale;
    if (codes.factor == 0.0f) {
      std::memset(out, 0, static_cast<std::size_t>(n));
      return;
    }
  }
  store_floats_as(row, n, item, codes.factor, out);
}

// Divides by the Euclidean norm; a row of zeros stays. In float64 no square overflows.
static inline void normalise_row(float* row, std::ptrdiff_t n) {
  double sums[8] = {};
  std::ptrdiff_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; ++k) sums[k] += static_cast<double>(row[i + k]) * row[i + k];
  for (; i < n; ++i) sums[0] += static_cast<double>(row[i]) * row[i];
  const double sum =
      ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  if (sum == 0.0) return;
  const double factor = 1.0 / __builtin_sqrt(sum);
  for (i = 0; i < n; ++i) row[i] = static_cast<float>(row[i] * factor);
}

}  // namespace pyfeat::PYFEAT_ISA
