// Powers of positive floats, for the instruction set being compiled.
#pragma once

#include "simd_float.h"

namespace pyfeat::PYFEAT_ISA {

// An exponent cut in two: `high` has 16 bits, so that its product with one of 8 bits is exact.
struct Exponent {
  explicit Exponent(double a) : whole(static_cast<float>(a)), high(whole) {
    std::uint32_t bits;
    std::memcpy(&bits, &high, sizeof bits);
    bits &= 0xFFFFFF00;
    std::memcpy(&high, &bits, sizeof bits);
    low = static_cast<float>(a - static_cast<double>(high));
  }
  float whole, high, low;
};

// ln x for x in [sqrt(1/2), sqrt(2)]: 2 artanh(s), s = (x - 1) / (x + 1), |s| < 0.172, by its
// series up to s^11.
static inline Floats log_near_one(Floats x) {
  const Floats s = (x - 1.0f) / (x + 1.0f);
  const Floats z = s * s;
  Floats p = splat(2.0f / 11.0f);
  p = p * z + 2.0f / 9.0f;
  p = p * z + 2.0f / 7.0f;
  p = p * z + 2.0f / 5.0f;
  p = p * z + 2.0f / 3.0f;
  return s * (p * z) + (s + s);
}

// x^a for normal x > 0 and 0 < a <= 64; beyond the range of floats 0 or infinity.
//
// x = 2^e f: x^a = 2^n exp(((e a - n) ln 2 + a ln f), n = round(e a). The error relative to the
// result is about a times that of ln f: (x^a)^(1/a) comes back to a few units in the last place.
static inline Floats power_of(Floats x, const Exponent& a) {
  const Int32s bits = reinterpret_cast<Int32s>(x);
  const Int32s whole = (bits - 0x3F3504F3) >> 23;  // the bits of sqrt(1/2)
  const Floats f = reinterpret_cast<Floats>(bits - whole * (1 << 23));
  const Floats e = __builtin_convertvector(whole, Floats);
  Floats turns = e * a.high;
  // Further out the result is 0 or infinity however large exp() is: at most exp(64 ln(2) / 2).
  turns = turns > 252.0f ? splat(252.0f) : turns < -252.0f ? splat(-252.0f) : turns;
  const Floats shifter = splat(12582912.0f);
  const Floats shifted = turns + shifter;
  const Floats n = shifted - shifter;
  const Floats power = exp_of(((turns - n) + e * a.low) * 0.693147181f + log_near_one(f) * a.whole);
  const Int32s steps = reinterpret_cast<Int32s>(shifted) - 0x4B400000;
  const Int32s half = steps >> 1;
  const Floats low = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats high = reinterpret_cast<Floats>((steps - half + 127) << 23);
  return power * low * high;
}

}  // namespace pyfeat::PYFEAT_ISA
