// Weights of an antialiased resize in one direction, as integers in units of 2^-22.
#pragma once

#include <cstdint>
#include <vector>

#include "preprocess.h"

namespace pyfeat {

// What one direction of resize and crop is: `count` outputs from number `first` on, out of `n_out`
// that `n_in` source positions are resized to. Requires n_in >= 1 and 0 <= first <= n_out - count.
struct Direction {
  std::int64_t n_in;
  std::int64_t n_out;
  std::int64_t first;
  int count;
};

enum class Filter { kBilinear, kBicubic };

// Owns the arrays that `taps()` points to. Source positions outside [source, source + length) have
// no weight; `starts` count from `source`, and no window of 2 * pairs taps ends later than one tap
// past the end of that range.
struct ResizeWeights {
  // Mirrored: output i is what output count - 1 - i would be.
  ResizeWeights(const Direction& direction, Filter filter, bool mirrored = false);
  Taps taps() const { return {count, pairs, starts.data(), weights.data()}; }

  int count;
  int pairs;
  int source;
  int length;
  std::vector<std::int32_t> starts;
  std::vector<std::int32_t> weights;
};

// Owns the arrays that `groups()` points to: the weights of one direction for five outputs at once.
struct GroupedWeights {
  GroupedWeights() = default;
  explicit GroupedWeights(const Taps& taps);
  TapGroups groups() const {
    return {quads, offsets.empty() ? nullptr : offsets.data(), words.data()};
  }

  int quads = 0;
  std::vector<std::int32_t> offsets;
  std::vector<std::uint8_t> words;
};

}  // namespace pyfeat
