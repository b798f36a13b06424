// Every number of a feature map is read once, in the order in which it lies in memory.
//
// Channels apart (NCHW): the numbers of a channel are folded into one vector, and the vectors of
// kWidth channels into one that holds a result in each lane. Channels adjacent (NHWC, tokens): a
// vector is kWidth channels of one position, folded into a row that stays in the first cache.
#include "pool.h"

#include <math.h>

#include "fetch.h"
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
  static Floats merge(Floats a, Floats b) { return ((b > a) | (b != b)) ? b : a; }
};
struct PowerSum {
  static Floats start() { return Floats{}; }
  static Floats merge(Floats a, Floats b) { return a + b; }
  static Floats floored(Floats v) { return v < kGemFloor ? splat(kGemFloor) : v; }  // NaN stays
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

constexpr std::ptrdiff_t kShortRun = 256, kAhead = 3072;  // numbers: fetched ahead, and how far
constexpr std::ptrdiff_t kSpan = 256 * kWidth;  // numbers whose sum is made before it is added
constexpr int kRuns = 4;  // channels folded at once, so that sums do not wait for each other

// parts[k] is n adjacent numbers from `offsets[k]` on, folded into one vector.
template <typename As, typename Fold>
void fold_runs(const FeatureMap& map, const std::ptrdiff_t* offsets, const Fold& fold,
               Floats* parts) {
  const auto* data = static_cast<const typename As::Number*>(map.data);
  const std::ptrdiff_t n = map.positions, whole = n / kWidth * kWidth;
  for (int k = 0; k < kRuns; ++k) parts[k] = Fold::start();
  for (std::ptrdiff_t first = 0; first < whole; first += kSpan) {
    const std::ptrdiff_t end = first + kSpan < whole ? first + kSpan : whole;
    Floats span[kRuns] = {Fold::start(), Fold::start(), Fold::start(), Fold::start()};
    for (std::ptrdiff_t i = first; i < end; i += kWidth)
#pragma GCC unroll 4
      for (int k = 0; k < kRuns; ++k) span[k] = fold.step(span[k], As::load(data + offsets[k] + i));
    for (int k = 0; k < kRuns; ++k) parts[k] = Fold::merge(parts[k], span[k]);
  }
  if (whole == n) return;
  const Int32s inside = kLaneNumbers < static_cast<std::int32_t>(n - whole);
  for (int k = 0; k < kRuns; ++k) {
    const std::ptrdiff_t last = offsets[k] + whole;
    const Floats rest = load_end<As>(data + last, map.readable - last);
    parts[k] = inside ? fold.step(parts[k], rest) : parts[k];
  }
}

template <typename As, typename Fold>
void fold_apart(const FeatureMap& map, const Fold& fold, float* row) {
  for (std::ptrdiff_t c = 0; c < map.channels; c += kWidth) {
    Floats parts[kWidth];
    for (int k = 0; k < kWidth; k += kRuns) {
      std::ptrdiff_t offsets[kRuns];
      for (int run = 0; run < kRuns; ++run) {
        const std::ptrdiff_t channel = c + k + run;
        offsets[run] = (channel < map.channels ? channel : map.channels - 1) * map.channel_stride;
      }
      if (map.channel_stride <= kShortRun)
        fetch(static_cast<const typename As::Number*>(map.data) + offsets[0] + kAhead,
              kRuns * map.channel_stride);
      fold_runs<As>(map, offsets, fold, parts + k);
    }
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

template <typename As>
double number(const FeatureMap& map, std::ptrdiff_t c, std::ptrdiff_t l) {
  const auto* data = static_cast<const typename As::Number*>(map.data);
  return As::one(data[c * map.channel_stride + l * map.position_stride]);
}

// The mean of one channel in float64, where the sum left the range of float32.
template <typename As>
float careful_mean(const FeatureMap& map, std::ptrdiff_t c) {
  double sum = 0.0;
  for (std::ptrdiff_t l = 0; l < map.positions; ++l) sum += number<As>(map, c, l);
  return static_cast<float>(sum / static_cast<double>(map.positions));
}

// The same for kGem, with the largest number taken out: m (mean((x / m)^p))^(1/p).
template <typename As>
float careful_gem(const FeatureMap& map, std::ptrdiff_t c, double p) {
  double most = kGemFloor;
  for (std::ptrdiff_t l = 0; l < map.positions; ++l) {
    const double x = number<As>(map, c, l);
    if (x != x) return static_cast<float>(x);
    if (x > most) most = x;
  }
  if (most == static_cast<double>(kGemFloor) || most > kLargestFloat)
    return static_cast<float>(most);
  double sum = 0.0;
  for (std::ptrdiff_t l = 0; l < map.positions; ++l) {
    const double x = number<As>(map, c, l);
    sum += ::pow((x < kGemFloor ? kGemFloor : x) / most, p);
  }
  return static_cast<float>(most * ::pow(sum / static_cast<double>(map.positions), 1.0 / p));
}

template <typename As>
void finish_mean(const FeatureMap& map, float* row) {
  const float n = static_cast<float>(map.positions);
  for (std::ptrdiff_t c = 0; c < map.channels; c += kWidth)
    store_floats(row + c, load_floats(row + c) / n);
  for (std::ptrdiff_t c = 0; c < map.channels; ++c)
    if (!(row[c] >= -kLargestFloat && row[c] <= kLargestFloat)) row[c] = careful_mean<As>(map, c);
}

template <typename As>
void finish_gem(const FeatureMap& map, double p, float* part, float* row) {
  // Between them no power that counts was lost below the normal numbers, and none was infinite.
  constexpr float kLeast = 1e-33f;
  const float n = static_cast<float>(map.positions);
  const Exponent root(1.0 / p);
  for (std::ptrdiff_t c = 0; c < map.channels; c += kWidth) {
    const Floats mean = load_floats(row + c) / n;
    store_floats(part + c, mean);
    store_floats(row + c, power_of(mean, root));
  }
  for (std::ptrdiff_t c = 0; c < map.channels; ++c)
    if (!(part[c] >= kLeast && part[c] <= kLargestFloat)) row[c] = careful_gem<As>(map, c, p);
}

template <typename As>
void pool_gem(const FeatureMap& map, double p, float* part, float* row) {
  constexpr double kMostWhole = 1 << 20, kMostReal = 64;
  if (p == 3.0)
    fold_map<As>(map, Cubes(), part, row);
  else if (p <= kMostWhole && p == static_cast<int>(p))
    fold_map<As>(map, WholePowers(static_cast<int>(p)), part, row);
  else if (p <= kMostReal)
    fold_map<As>(map, RealPowers(p), part, row);
  else
    for (std::ptrdiff_t c = 0; c < map.channels; ++c) row[c] = 0.0f;  // all of them with care
  finish_gem<As>(map, p, part, row);
}

// row[c], c < channels; row and part have room for a vector more.
template <typename As>
void pool_as(const FeatureMap& map, Pooling method, double p, float* part, float* row) {
  switch (method) {
    case Pooling::kAvg:
      fold_map<As>(map, Sum(), part, row);
      return finish_mean<As>(map, row);
    case Pooling::kMax:
      return fold_map<As>(map, Max(), part, row);
    case Pooling::kGem:
      return pool_gem<As>(map, p, part, row);
  }
}

void pool_map(const FeatureMap& map, Pooling method, double p, float* part, float* row) {
  if (map.item == Item::kFloat32) return pool_as<Float32>(map, method, p, part, row);
  if (map.item == Item::kFloat16) return pool_as<Float16>(map, method, p, part, row);
  pool_as<BFloat16>(map, method, p, part, row);
}

}  // namespace

void pool(const FeatureMap& map, const PoolPlan& plan, float* scratch, void* out, float* scale) {
  float* row = scratch + map.channels + 16;
  if (plan.first) {
    FeatureMap head = map, rest = map;
    head.positions = 1;
    --rest.positions;
    rest.data = skip_items(map.data, map.item, map.position_stride);
    rest.readable -= map.position_stride;
    pool_map(head, Pooling::kAvg, plan.p, scratch, row);
    pool_map(rest, plan.method, plan.p, scratch, row + map.channels);
  } else {
    pool_map(map, plan.method, plan.p, scratch, row);
  }
  const std::ptrdiff_t d = plan.first ? 2 * map.channels : map.channels;
  if (plan.l2) normalise_row(row, d);
  store_row(row, d, plan.to, out, scale);
}

}  // namespace pyfeat::PYFEAT_ISA
