#include "resize_weights.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

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
