// A square of numbers in registers, rows made columns.
#pragma once

#include "simd_float.h"

namespace pyfeat::PYFEAT_ISA {

// square[i] lane j becomes square[j] lane i.
static inline void turn(Floats (&square)[kWidth]) {
#if defined(PYFEAT_AVX512)
#pragma GCC unroll 4
  for (int half = 1; half < 16; half *= 2) {
    // Lanes without the bit `half` from the first, those with it from the second; 16 marks it.
    alignas(64) std::int32_t low[16], high[16];
    for (int lane = 0; lane < 16; ++lane) {
      low[lane] = lane & half ? lane - half + 16 : lane;
      high[lane] = lane & half ? lane + 16 : lane + half;
    }
    const __m512i take_low = _mm512_load_si512(low), take_high = _mm512_load_si512(high);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & half) continue;
      const Floats a = square[i], b = square[i + half];
      square[i] = _mm512_permutex2var_ps(a, take_low, b);
      square[i + half] = _mm512_permutex2var_ps(a, take_high, b);
    }
  }
#elif defined(PYFEAT_ISA_avx2)
  __m256 pairs[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(square[i], square[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(square[i], square[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    square[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    square[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
#else
  for (int i = 0; i < kWidth; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = square[i][j];
      square[i][j] = square[j][i];
      square[j][i] = kept;
    }
#endif
}

}  // namespace pyfeat::PYFEAT_ISA
