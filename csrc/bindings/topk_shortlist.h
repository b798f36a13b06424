// The rows that may still be among the nearest of a query: kept by bounds, scored only if they
// must.
//
// A key orders the rows of one query as their scores do, larger is better:
//   inner product q.b    cosine q.b / |b|    squared L2 q.b - |b|^2 / 2
// Screening computes it in float32 with an error below a * p + b * w + z, where (p, w, z) belong to
// the row and (a, b, z) to the query. Hence k rows give a bound that the k-th best key exceeds, and
// a row whose key cannot reach that bound is out. Where bounds cannot tell enough rows apart, their
// scores are computed in float64: the answer never depends on how the rows were screened.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/topk.h"

namespace pyfeat {

// One product of two vectors in float32 may err by this many times the product of their norms;
// and as much again as the scores of two rows may differ and still round to the same float32.
inline float accumulation_error(std::ptrdiff_t d) {
  const double u = static_cast<double>(d + 16) * 0x1p-24;
  return u < 0.5 ? static_cast<float>(1.02 * u / (1 - u) + 0x1p-21)
                 : std::numeric_limits<float>::infinity();
}

struct QueryBound {
  float a, b, z;
  double squared;  // |q|^2, not finite when the query is not
};

// What the rows of one block, `count` of each, look like to the screening.
struct RowBounds {
  std::vector<float> mul,
      add;  // key = mul * (product with the packed row) + add; NaN: no neighbour
  std::vector<float> p, w, z;
  float most_p, most_w, most_z;

  explicit RowBounds(std::size_t count) : mul(count), add(count), p(count), w(count), z(count) {}

  void fill(const double* squared, const float* rest, const float* scales, int count,
            std::ptrdiff_t d, Metric metric) {
    most_p = most_w = most_z = 0;
    for (int i = 0; i < count; ++i)
      take(i, squared[i], rest ? rest[i] : 0.0f, scales ? scales[i] : 1.0, d, metric);
  }

  // The same by squares in float32. norm(i) gives the square of row i in float64.
  template <typename Norm>
  void fill_fast(const float* squared, const float* scales, int count, std::ptrdiff_t d,
                 Metric metric, const Norm& norm) {
    float most[3];
    PYFEAT_KERNEL(topk_bounds)
    (squared, scales, count, d, accumulation_error(d), metric,
     {mul.data(), add.data(), p.data(), w.data(), z.data(), most});
    most_p = most[0], most_w = most[1], most_z = most[2];
    for (int i = 0; i < count; ++i)
      if (w[i] < 0) take(i, norm(i), 0.0f, scales ? scales[i] : 1.0, d, metric);
  }

 private:
  void take(int i, double squared, float rest, double scale, std::ptrdiff_t d, Metric metric) {
    set(i, squared, rest, scale, d, metric);
    if (mul[i] != mul[i]) return;
    most_p = std::max(most_p, p[i]);
    most_w = std::max(most_w, w[i]);
    most_z = std::max(most_z, z[i]);
  }

  void set(int i, double squared, float rest, double scale, std::ptrdiff_t d, Metric metric) {
    const double length = std::sqrt(squared), norm = length * std::fabs(scale);
    mul[i] = add[i] = p[i] = w[i] = z[i] = 0;
    if (!std::isfinite(squared) || !std::isfinite(scale)) {
      mul[i] = std::numeric_limits<float>::quiet_NaN();
      return;
    }
    if (norm == 0) return;
    // Beyond these, float32 could overflow or lose what is small: such rows are always scored.
    const bool small = metric == Metric::kCosine && norm < 1e-18;
    if (norm > 1e18 || small || std::fabs(scale) < 1e-30) {
      add[i] = z[i] = std::numeric_limits<float>::infinity();
      return;
    }
    const double factor = metric == Metric::kCosine ? scale / norm : scale;
    const double shift = metric == Metric::kL2 ? -0.5 * norm * norm : 0.0;
    const double size = std::fabs(factor);
    // The squares summed to `rest` are float32: their rounding, and what may have underflowed.
    const double lost = rest == 0 ? 0.0 : rest * (1 + (d + 8.0) * 0x1p-23) + length * 0x1p-20;
    const double tiny = size * static_cast<double>(d) * 3e-38 * (1 + length);
    mul[i] = static_cast<float>(factor);
    add[i] = static_cast<float>(shift);
    p[i] = static_cast<float>((size * lost + tiny) * 1.00001);
    w[i] = static_cast<float>(size * length * 1.00001);
    z[i] = static_cast<float>((0x1p-21 * std::fabs(shift) + tiny) * 1.00001 + 1e-37);
  }
};

inline QueryBound bound_of(double squared, float rest, std::ptrdiff_t d, Metric metric) {
  const double norm = std::sqrt(squared);
  const double lost = rest == 0 ? 0.0 : rest * (1 + (d + 8.0) * 0x1p-23) + norm * 0x1p-20;
  QueryBound q{};
  q.squared = squared;
  q.a = static_cast<float>((norm + lost) * 1.00001);
  q.b = static_cast<float>((lost + accumulation_error(d) * (norm + lost)) * 1.00001);
  q.z = metric == Metric::kL2 ? static_cast<float>(0x1p-21 * squared) : 0.0f;
  if (!(norm < 1e18)) q.z = std::numeric_limits<float>::infinity();  // scores every row
  return q;
}

struct Candidate {
  float lower, upper;  // of the key
  float score;         // NaN until it is known
  std::int64_t row;

  bool scored() const { return score == score; }
  bool before(const Candidate& other) const {
    return score != other.score ? score > other.score : row < other.row;
  }
};

// What all shortlists of a call share.
struct Search {
  Rows base;
  const float* queries;  // (n, d)
  std::ptrdiff_t d;
  std::size_t k;
  Metric metric;
};

class Shortlist {
 public:
  static std::size_t capacity(std::size_t k) { return 3 * k + 64; }

  float threshold() const { return threshold_; }
  std::vector<Candidate>& items() { return items_; }
  std::size_t scored() const { return scored_; }

  void add(const Candidate& item, const Search& search, const float* query, double squared) {
    if (items_.capacity() == 0) items_.reserve(capacity(search.k));
    items_.push_back(item);
    if (items_.size() < capacity(search.k)) return;
    prune(search.k);
    if (items_.size() > capacity(search.k) - search.k / 2 - 16) settle(search, query, squared);
  }

  // Raises the threshold to the k-th best lower bound and drops what cannot reach it.
  void prune(std::size_t k) {
    if (items_.size() < k) return;
    std::vector<float> lower(items_.size());
    std::transform(items_.begin(), items_.end(), lower.begin(),
                   [](const Candidate& c) { return c.lower; });
    const auto kth = lower.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(lower.begin(), kth, lower.end(), std::greater<float>());
    threshold_ = std::max(threshold_, *kth);
    const auto out = [this](const Candidate& c) { return c.upper < threshold_; };
    items_.erase(std::remove_if(items_.begin(), items_.end(), out), items_.end());
  }

  // Scores every row and keeps the k best.
  void settle(const Search& search, const float* query, double squared) {
    for (Candidate& c : items_)
      if (!c.scored()) {
        ++scored_;
        score(c, search, query, squared);
      }
    const auto bad = [](const Candidate& c) { return !c.scored(); };
    items_.erase(std::remove_if(items_.begin(), items_.end(), bad), items_.end());
    if (items_.size() < search.k) return;
    const auto end = items_.begin() + static_cast<std::ptrdiff_t>(search.k);
    std::nth_element(items_.begin(), end - 1, items_.end(),
                     [](const Candidate& x, const Candidate& y) { return x.before(y); });
    items_.erase(end, items_.end());
    threshold_ = std::max(threshold_, items_.back().lower);
  }

 private:
  static void score(Candidate& c, const Search& search, const float* query, double squared) {
    const double exact =
        PYFEAT_KERNEL(topk_score)(query, squared, search.base, c.row, search.d, search.metric);
    c.score = static_cast<float>(exact);
    const double key = search.metric == Metric::kInner    ? exact
                       : search.metric == Metric::kCosine ? exact * std::sqrt(squared)
                                                          : 0.5 * (squared + exact);
    const double slack = 0x1p-21 * (std::fabs(key) + squared * (search.metric == Metric::kL2)) +
                         1e-37 * (1 + std::sqrt(squared));
    const double most = FLT_MAX / 2;  // beyond, all scores are infinite and tie
    c.lower = static_cast<float>(std::clamp(key - slack, -2 * most, most));
    c.upper = static_cast<float>(std::clamp(key + slack, -most, 2 * most));
  }

  std::vector<Candidate> items_;
  float threshold_ = -std::numeric_limits<float>::infinity();
  std::size_t scored_ = 0;
};

}  // namespace pyfeat
