// How `pool` reads a feature map: every number once, in the order in which it lies in memory.
//
// Channels apart (NCHW): the numbers of a channel are folded into one vector, and the vectors of
// kWidth channels into one that holds a result in each lane. Channels adjacent (NHWC, tokens): a
// vector is kWidth channels of one position, folded into a row that stays in the first cache.
// What comes next in memory is asked for meanwhile, beyond the end of the map, too: in a batch the
// next one lies there.
#pragma once

#include "fetch.h"
#include "pool.h"
#include "power.h"
#include "store_row.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr float kGemFloor = 1e-6f;
constexpr float kLargestFloat = 3.40282347e38f;
constexpr std::ptrdiff_t kBlock = 128;  // positions whose sum is made before it is added

#if defined(PYFEAT_AVX512)
#define PYFEAT_LANES 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif defined(PYFEAT_ISA_avx2)
#define PYFEAT_LANES 0, 1, 2, 3, 4, 5, 6, 7
#else
#define PYFEAT_LANES 0, 1, 2, 3
#endif
constexpr Int32s kLaneNumbers = {PYFEAT_LANES};

// A vector of numbers of each type.
struct Float32 {
  using Number = float;
  static Floats load(const float* p) { return load_floats(p); }
  static float one(float x) { return x; }
};
struct BFloat16 {
  using Number = std::uint16_t;
  static Floats load(const std::uint16_t* p) {
    UInt16s v;
    std::memcpy(&v, p, sizeof v);
    return reinterpret_cast<Floats>(__builtin_convertvector(v, UInt32s) << 16);
  }
  static float one(std::uint16_t x) { return from_bfloat16(x); }
};
struct Float16 {
  using Number = std::uint16_t;
  static Floats load(const std::uint16_t* p) {
#if defined(PYFEAT_AVX512)
    return reinterpret_cast<Floats>(
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(PYFEAT_ISA_avx2)
    return reinterpret_cast<Floats>(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    UInt16s v;
    std::memcpy(&v, p, sizeof v);
    const UInt32s bits = __builtin_convertvector(v, UInt32s), rest = (bits & 0x7FFF) << 13;
    // As from_float16.
    const UInt32s size =
        reinterpret_cast<UInt32s>(reinterpret_cast<Floats>(rest) * 5.192296858534828e33f);
    return reinterpret_cast<Floats>(((bits & 0x8000) << 16) |
                                    ((bits & 0x7C00) == 0x7C00 ? rest | 0x7F800000 : size));
#endif
  }
  static float one(std::uint16_t x) { return from_float16(x); }
};

// The first vector at p when fewer than kWidth numbers may be read; the other lanes are 0.
template <typename As>
Floats load_end(const typename As::Number* p, std::ptrdiff_t readable) {
  if (readable >= kWidth) return As::load(p);
  typename As::Number last[kWidth] = {};
  std::memcpy(last, p, static_cast<std::size_t>(readable) * sizeof *p);
  return As::load(last);
}

// a > b ? a : b, so b where one of them is NaN.
inline Floats larger(Floats a, Floats b) {
#if defined(PYFEAT_AVX512)
  return reinterpret_cast<Floats>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(PYFEAT_ISA_avx2)
  return reinterpret_cast<Floats>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}

// How numbers are folded: step() takes one in, merge() joins two results.
struct Sum {
  static Floats start() { return Floats{}; }
  Floats step(Floats a, Floats v) const { return a + v; }
  static Floats merge(Floats a, Floats b) { return a + b; }
};
struct Max {
  static Floats start() { return splat(-__builtin_inff()); }
  // NaN wins.
  Floats step(Floats a, Floats v) const { return merge(a, v); }
  static Floats merge(Floats a, Floats b) { return b != b ? b : larger(b, a); }
};
struct PowerSum {
  static Floats start() { return Floats{}; }
  static Floats merge(Floats a, Floats b) { return a + b; }
  static Floats floored(Floats v) { return larger(splat(kGemFloor), v); }  // NaN stays
};
struct Cubes : PowerSum {
  Floats step(Floats a, Floats v) const {
    v = floored(v);
    return a + v * v * v;
  }
};
struct WholePowers : PowerSum {
  explicit WholePowers(int p) : p(p) {}
  Floats step(Floats a, Floats v) const {
    v = floored(v);
    Floats power = (p & 1) ? v : splat(1.0f);
    for (int rest = p >> 1; rest; rest >>= 1) {
      v *= v;
      if (rest & 1) power *= v;
    }
    return a + power;
  }
  int p;
};
struct RealPowers : PowerSum {
  explicit RealPowers(double p) : p(p) {}
  Floats step(Floats a, Floats v) const {
    v = floored(v);
    // Infinity and NaN have no exponent to be cut off.
    return a + (v <= kLargestFloat ? power_of(v, p) : v);
  }
  Exponent p;
};

// Lane i is the sum (or maximum) of two lanes of `a` where bit h of i is 0, else of `b`.
template <typename Fold, int h, int... i>
Floats fold_pair(Floats a, Floats b) {
#ifdef __clang__
  return Fold::merge(__builtin_shufflevector(a, b, ((i & h) ? kWidth + i : i)...),
                     __builtin_shufflevector(a, b, ((i & h) ? kWidth + (i ^ h) : (i ^ h))...));
#else
  return Fold::merge(__builtin_shuffle(a, b, Int32s{((i & h) ? kWidth + i : i)...}),
                     __builtin_shuffle(a, b, Int32s{((i & h) ? kWidth + (i ^ h) : (i ^ h))...}));
#endif
}

// Lane i of the result is all lanes of parts[i], folded. Changes `parts`.
template <typename Fold, int h = kWidth / 2>
Floats fold_lanes(Floats* parts) {
  for (int k = 0; k < h; ++k) parts[k] = fold_pair<Fold, h, PYFEAT_LANES>(parts[k], parts[k + h]);
  if constexpr (h > 1) return fold_lanes<Fold, h / 2>(parts);
  return parts[0];
}

constexpr std::ptrdiff_t kAhead = 3072;  // numbers: how far what comes next is fetched
constexpr int kSums = 4;                 // of one channel, so that none waits for the one before
constexpr std::ptrdiff_t kStep = kSums * kWidth;
constexpr std::ptrdiff_t kShort = 16 * kWidth;  // of fewer numbers there is one sum
constexpr std::ptrdiff_t kSpan = 64 * kStep;    // numbers whose sum is made before it is added

// The n adjacent numbers of a channel, folded into one vector. `readable` numbers from p on may be
// read, and those from `ahead` numbers further are what will be read next.
template <typename As, typename Fold>
inline Floats fold_run(const typename As::Number* p, std::ptrdiff_t n, Int32s inside,
                       std::ptrdiff_t readable, std::ptrdiff_t ahead, const Fold& fold) {
  Floats all = Fold::start();
  std::ptrdiff_t i = 0;
  while (n >= kShort && n - i >= kStep) {
    const std::ptrdiff_t end = n - i < kSpan ? n : i + kSpan;
    Floats sums[kSums] = {Fold::start(), Fold::start(), Fold::start(), Fold::start()};
    for (; i + kStep <= end; i += kStep) {
      fetch(p + i + ahead, kStep);
#pragma GCC unroll 4
      for (int k = 0; k < kSums; ++k) sums[k] = fold.step(sums[k], As::load(p + i + k * kWidth));
    }
    all =
        Fold::merge(all, Fold::merge(Fold::merge(sums[0], sums[1]), Fold::merge(sums[2], sums[3])));
  }
  fetch(p + i + ahead, n - i);
  for (; i + kWidth <= n; i += kWidth) all = fold.step(all, As::load(p + i));
  if (i == n) return all;
  return inside ? fold.step(all, load_end<As>(p + i, readable - i)) : all;
}

// As fold_run for kWidth channels shorter than kShort, of `whole` vectors and a part of one, all of
// which may be read. Inlined, so that a `whole` that is known takes no loop.
template <typename As, typename Fold>
[[gnu::always_inline]] inline void fold_short(const typename As::Number* p, std::ptrdiff_t stride,
                                              std::ptrdiff_t whole, Int32s inside,
                                              std::ptrdiff_t ahead, const Fold& fold,
                                              Floats* parts) {
  for (int k = 0; k < kWidth; ++k, p += stride) {
    fetch(p + ahead, (whole + 1) * kWidth);
    Floats all = Fold::start();
    for (std::ptrdiff_t i = 0; i < whole; ++i) all = fold.step(all, As::load(p + i * kWidth));
    parts[k] = inside ? fold.step(all, As::load(p + whole * kWidth)) : all;
  }
}

// parts[k] is channel c + k, folded into one vector; behind the last channel it comes again.
template <typename As, typename Fold>
void fold_channels(const FeatureMap& map, std::ptrdiff_t c, Int32s inside, std::ptrdiff_t ahead,
                   const Fold& fold, Floats* parts) {
  const auto* data = static_cast<const typename As::Number*>(map.data);
  const std::ptrdiff_t n = map.positions, stride = map.channel_stride, whole = n / kWidth;
  const std::ptrdiff_t end = (c + kWidth - 1) * stride + (whole + 1) * kWidth;
  if (n < kShort && c + kWidth <= map.channels && end <= map.readable) {
    // 7 x 7 on vectors of 16, 8 and 4.
    constexpr std::ptrdiff_t k49 = 49 / kWidth;
    if (whole == k49)
      return fold_short<As>(data + c * stride, stride, k49, inside, ahead, fold, parts);
    return fold_short<As>(data + c * stride, stride, whole, inside, ahead, fold, parts);
  }
  for (int k = 0; k < kWidth; ++k) {
    const std::ptrdiff_t offset = (c + k < map.channels ? c + k : map.channels - 1) * stride;
    parts[k] = fold_run<As>(data + offset, n, inside, map.readable - offset, ahead, fold);
  }
}

template <typename As, typename Fold>
void fold_apart(const FeatureMap& map, const Fold& fold, float* row) {
  const std::ptrdiff_t n = map.positions, stride = map.channel_stride;
  // Of short channels, those that lie so far ahead.
  const std::ptrdiff_t ahead = n > kAhead || stride < 1 ? kAhead : (kAhead / stride + 1) * stride;
  const Int32s inside = kLaneNumbers < static_cast<std::int32_t>(n % kWidth);
  for (std::ptrdiff_t c = 0; c < map.channels; c += kWidth) {
    Floats parts[kWidth];
    fold_channels<As>(map, c, inside, ahead, fold, parts);
    store_floats(row + c, fold_lanes<Fold>(parts));
  }
}

// Folds `count` positions from `first` on, at most kBlock, into `row`.
template <typename As, typename Fold>
void fold_block(const FeatureMap& map, std::ptrdiff_t first, std::ptrdiff_t count, const Fold& fold,
                float* row) {
  const std::ptrdiff_t step = map.position_stride, whole = map.channels / kWidth * kWidth;
  const std::ptrdiff_t begin = first * step;
  const auto* p = static_cast<const typename As::Number*>(map.data) + begin;
  for (std::ptrdiff_t c = 0; c < map.channels; c += kWidth) store_floats(row + c, Fold::start());
  std::ptrdiff_t l = 0;
  for (; l + 4 <= count; l += 4)
    for (std::ptrdiff_t c = 0; c < whole; c += kWidth) {
      const auto* at = p + l * step + c;
      // The next four positions in the order of memory, one stream instead of four.
      fetch(p + (l + 4) * step + 4 * c, 4 * kWidth);
      Floats four = fold.step(Fold::start(), As::load(at));
      four = fold.step(four, As::load(at + step));
      four = fold.step(four, As::load(at + 2 * step));
      four = fold.step(four, As::load(at + 3 * step));
      store_floats(row + c, Fold::merge(load_floats(row + c), four));
    }
  for (; l < count; ++l)
    for (std::ptrdiff_t c = 0; c < whole; c += kWidth)
      store_floats(row + c, fold.step(load_floats(row + c), As::load(p + l * step + c)));
  if (whole == map.channels) return;
  Floats last = Fold::start();
  for (l = 0; l < count; ++l) {
    const std::ptrdiff_t offset = l * step + whole;
    last = fold.step(last, load_end<As>(p + offset, map.readable - begin - offset));
  }
  store_floats(row + whole, last);
}

template <typename As, typename Fold>
void fold_adjacent(const FeatureMap& map, const Fold& fold, float* part, float* row) {
  for (std::ptrdiff_t first = 0; first < map.positions; first += kBlock) {
    const std::ptrdiff_t rest = map.positions - first;
    fold_block<As>(map, first, rest < kBlock ? rest : kBlock, fold, first ? part : row);
    if (first)
      for (std::ptrdiff_t c = 0; c < map.channels; c += kWidth)
        store_floats(row + c, Fold::merge(load_floats(row + c), load_floats(part + c)));
  }
}

template <typename As, typename Fold>
void fold_map(const FeatureMap& map, const Fold& fold, float* part, float* row) {
  if (map.channel_stride == 1) return fold_adjacent<As>(map, fold, part, row);
  fold_apart<As>(map, fold, row);
}

}  // namespace
}  // namespace pyfeat::PYFEAT_ISA
