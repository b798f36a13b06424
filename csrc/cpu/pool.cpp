// A feature map to one row: folded as pool_fold.h says, finished with care where the sum of a
// channel left the range of float32.
#include "pool.h"

#include <math.h>

#include "pool_fold.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

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
  if (largest_bits(row, map.channels, 0) < 0x7F800000) return;
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
