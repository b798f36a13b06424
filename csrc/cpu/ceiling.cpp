// As many independent chains as hide the latency of an instruction.
#include "ceiling.h"

#include "simd_float.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr int kChains = 12;

}  // namespace

double multiply_add_loop(std::ptrdiff_t turns, bool bf16, float seed, float* out) {
  Floats chain[kChains];
  for (int i = 0; i < kChains; ++i) chain[i] = splat(seed * static_cast<float>(i));
  const Floats x = splat(seed), y = splat(seed * 0.5f);
  double flop = 2.0 * kWidth * kChains * static_cast<double>(turns);
#ifdef PYFEAT_ISA_avx512bf16
  if (bf16) {
    const __m512bh a = _mm512_cvtne2ps_pbh(x, y), b = _mm512_cvtne2ps_pbh(y, x);
    for (std::ptrdiff_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) chain[i] = _mm512_dpbf16_ps(chain[i], a, b);
    flop *= 2;
    bf16 = false;
    turns = 0;
  }
#endif
  (void)bf16;
  for (std::ptrdiff_t turn = 0; turn < turns; ++turn)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * x + y;
  Floats sum{};
  for (int i = 0; i < kChains; ++i) sum += chain[i];
  *out = sum_of(sum);
  return flop;
}

void read_loop(const float* x, std::ptrdiff_t n, float* out) {
  Floats sums[4] = {};
  for (std::ptrdiff_t i = 0; i < n; i += 4 * kWidth)
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) sums[s] += load_floats(x + i + s * kWidth);
  *out = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace pyfeat::PYFEAT_ISA
