#include "resize_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pyfeat {
namespace {

constexpr double kOne = 1 << 22;
constexpr int kFineBits = 11;

double radius(Filter filter) { return filter == Filter::kBicubic ? 2.0 : 1.0; }

// Keys' cubic convolution with a = -0.5, or the triangle.
double kernel(Filter filter, double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (filter == Filter::kBilinear) return x < 1.0 ? 1.0 - x : 0.0;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

std::int32_t fixed_point(double weight) {
  return static_cast<std::int32_t>(weight * kOne + (weight < 0 ? -0.5 : 0.5));
}

struct Window {
  double centre;
  int begin;
  int end;
};

Window window(const Direction& d, int i, double scale, double support) {
  const double centre = (static_cast<double>(d.first + i) + 0.5) * scale;
  return {centre, static_cast<int>(std::max(centre - support + 0.5, 0.0)),
          static_cast<int>(std::min(centre + support + 0.5, static_cast<double>(d.n_in)))};
}

// Adds tap `t` of a row of (pairs, 2) words: its two parts go to one half of a pair's two words.
void put(std::int32_t* row, int t, std::int32_t weight) {
  const int shift = t % 2 * 16;
  const std::int32_t coarse = weight >> kFineBits;
  const std::int32_t fine = weight & ((1 << kFineBits) - 1);
  row[t / 2 * 2] |=
      static_cast<std::int32_t>((static_cast<std::uint32_t>(coarse) & 0xffffu) << shift);
  row[t / 2 * 2 + 1] |= static_cast<std::int32_t>(static_cast<std::uint32_t>(fine) << shift);
}

// Weight t of an output, from the two words of its pair.
std::int32_t weight_of(const std::int32_t* row, int t) {
  const std::uint32_t shift = t % 2 * 16;
  const auto coarse =
      static_cast<std::int16_t>(static_cast<std::uint32_t>(row[t / 2 * 2]) >> shift);
  const std::uint32_t fine = static_cast<std::uint32_t>(row[t / 2 * 2 + 1]) >> shift & 0xffffu;
  return coarse * (1 << kFineBits) + static_cast<std::int32_t>(fine);
}

constexpr int kGroup = 5;
constexpr int kReach = 21;  // pixels that 64 bytes hold

// Writes output k of a group: the indices of four taps from pixel `first` on, and their weights.
void put_quad(std::uint8_t* words, int k, int first, const std::int32_t (&weights)[4]) {
  std::uint32_t parts[3] = {0, 0, 0};
  for (int t = 0; t < 4; ++t) {
    const std::int32_t low = static_cast<std::int8_t>(weights[t] & 0xff);
    const std::int32_t rest = (weights[t] - low) / 256;
    const std::int32_t middle = static_cast<std::int8_t>(rest & 0xff);
    const std::int32_t bytes[3] = {(rest - middle) / 256, middle, low};
    for (int part = 0; part < 3; ++part)
      parts[part] |= (static_cast<std::uint32_t>(bytes[part]) & 0xffu) << (8 * t);
  }
  for (int c = 0; c < 3; ++c) {
    std::uint8_t* word = words + 4 * (kGroup * c + k);
    const auto at = static_cast<std::uint32_t>(3 * first + c);
    const std::uint32_t indices = at | (at + 3) << 8 | (at + 6) << 16 | (at + 9) << 24;
    std::memcpy(word, &indices, 4);
    for (int part = 0; part < 3; ++part) std::memcpy(word + 64 * (part + 1), &parts[part], 4);
  }
}

}  // namespace

GroupedWeights::GroupedWeights(const Taps& taps) {
  const int n = (taps.count + kGroup - 1) / kGroup;
  quads = (taps.pairs + 1) / 2;
  std::vector<std::int32_t> firsts(static_cast<std::size_t>(n));
  for (int g = 0; g < n; ++g) {
    const auto begin = taps.starts + g * kGroup;
    const auto range =
        std::minmax_element(begin, taps.starts + std::min((g + 1) * kGroup, taps.count));
    if (*range.second - *range.first + 4 * quads > kReach) return;
    firsts[g] = *range.first;
  }
  words.assign(static_cast<std::size_t>(n) * quads * 256, 0);
  for (int i = 0; i < taps.count; ++i) {
    const std::int32_t* row = taps.weights + static_cast<std::size_t>(i) * taps.pairs * 2;
    for (int q = 0; q < quads; ++q) {
      std::int32_t weights[4];
      for (int t = 0; t < 4; ++t)
        weights[t] = 4 * q + t < 2 * taps.pairs ? weight_of(row, 4 * q + t) : 0;
      const std::size_t at = (static_cast<std::size_t>(i / kGroup) * quads + q) * 256;
      put_quad(words.data() + at, i % kGroup, taps.starts[i] - firsts[i / kGroup] + 4 * q, weights);
    }
  }
  offsets = firsts;
  for (std::int32_t& offset : offsets) offset *= 3;
}

// The order of operations in double is part of the result: another order can round a weight
// to the next integer. This file is therefore compiled without contraction to fused multiply-adds.
ResizeWeights::ResizeWeights(const Direction& d, Filter filter, bool mirrored) : count(d.count) {
  const double scale = static_cast<double>(d.n_in) / static_cast<double>(d.n_out);
  const double stretch = std::max(scale, 1.0);
  const double support = radius(filter) * stretch;

  std::vector<Window> windows(static_cast<std::size_t>(count));
  int widest = 0;
  for (int i = 0; i < count; ++i) {
    windows[i] = window(d, i, scale, support);
    widest = std::max(widest, windows[i].end - windows[i].begin);
  }
  source = windows.front().begin;
  length = windows.back().end - source;
  pairs = (widest + 1) / 2;

  const std::size_t padded = (static_cast<std::size_t>(count) + 3) / 4 * 4;
  starts.assign(padded, 0);
  weights.assign(padded * pairs * 2, 0);
  std::vector<double> raw(static_cast<std::size_t>(widest));
  for (int i = 0; i < count; ++i) {
    const Window& w = windows[i];
    double sum = 0.0;
    for (int x = w.begin; x < w.end; ++x)
      sum += raw[x - w.begin] = kernel(filter, (x - w.centre + 0.5) * (1.0 / stretch));
    const int start = std::min(w.begin - source, std::max(length - 2 * pairs, 0));
    const int to = mirrored ? count - 1 - i : i;
    starts[to] = start;
    std::int32_t* row = weights.data() + static_cast<std::size_t>(to) * pairs * 2;
    for (int x = w.begin; x < w.end; ++x)
      put(row, x - source - start, fixed_point(raw[x - w.begin] / sum));
  }
}

}  // namespace pyfeat
