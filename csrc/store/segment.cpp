#include "segment.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "crc32c.h"

namespace pyfeat::store {
namespace {

// Of n keys the first guess misses by some sqrt(n) / 2, each better one by the root of that.
constexpr int kBetterGuesses = 3;
constexpr std::size_t kWindow = 16;  // keys around the last guess that are compared at once

// Where a table of n entries ends; the largest number when that is none of 64 bits.
std::uint64_t end_of(std::uint64_t begin, std::uint64_t n, std::uint64_t size) {
  std::uint64_t bytes, end;
  const bool too_far =
      __builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(begin, bytes, &end);
  return too_far ? ~std::uint64_t{0} : end;
}

}  // namespace

Segment::Segment(const std::string& path, std::size_t n, std::size_t row_bytes,
                 SegmentLayout layout, std::size_t there)
    : path_(path), n_(n), row_bytes_(row_bytes), there_(std::min(there, n)), layout_(layout) {
  const File file = File::open_for_reading(path);
  const std::uint64_t need =
      std::max({end_of(layout.keys, n, kKeyBytes), end_of(layout.order, n, 8),
                end_of(layout.crcs, n, 4), end_of(layout.rows, there_, row_bytes),
                layout.scales ? end_of(layout.scales, n, kScaleBytes) : 0});
  if (file.size() < need) throw StoreError(EIO, "is shorter than its header says", path);
  map_ = Mapping(file, file.size());
  base_ = map_.data();
}

std::uint64_t Segment::order(std::size_t i) const {
  std::uint64_t row;
  std::memcpy(&row, order_at(i), 8);
  return row;
}

// Where `wanted` is expected, judged by the key at `guess`.
std::size_t Segment::better_guess(std::size_t guess, const Key& wanted) const {
  const std::uint64_t there = key(guess).high;
  if (wanted.high < there) {
    const std::size_t back = expected_position(there - wanted.high);
    return guess > back ? guess - back : 0;
  }
  const std::size_t on = expected_position(wanted.high - there);
  return std::min(guess + on, n_ - 1);
}

// The first key that is not smaller than `wanted`, or n.
std::size_t Segment::first_not_below(std::size_t guess, const Key& wanted) const {
  if (guess >= kWindow / 2 && guess + kWindow / 2 <= n_) {
    // Counted without a branch: a hash is as likely on this side of the guess as on that.
    const std::size_t begin = guess - kWindow / 2;
    std::size_t below = 0;
    for (std::size_t i = begin; i < begin + kWindow; ++i) {
      const Key there = key(i);
      below += static_cast<unsigned>(there.high < wanted.high) |
               (static_cast<unsigned>(there.high == wanted.high) &
                static_cast<unsigned>(there.low < wanted.low));
    }
    if (0 < below && below < kWindow) return begin + below;
  }
  return search(guess, wanted);
}

// The same by steps that double and then halve, however wrong the guess is.
std::size_t Segment::search(std::size_t guess, const Key& wanted) const {
  // Invariant: every key before `low` is smaller than wanted, every key from `high` on is not.
  std::size_t low = 0, high = n_, step = kWindow;
  if (key(guess) < wanted) {
    low = guess + 1;
    while (low + step < n_ && key(low + step) < wanted) low += step + 1, step *= 2;
    high = std::min(n_, low + step);
  } else {
    high = guess;
    while (high > step && !(key(high - step) < wanted)) high -= step, step *= 2;
    low = high > step ? high - step : 0;
  }
  while (low < high) {
    const std::size_t middle = low + (high - low) / 2;
    if (key(middle) < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Guesses for several keys are mended side by side, so that none waits for memory alone.
void Segment::find_each(const Segment* const* segments, const Key* wanted, std::size_t n,
                        std::int64_t* rows) {
  std::size_t at[kKeysAtOnce];
  for (std::size_t j = 0; j < n; ++j) {
    at[j] = segments[j]->expected_position(wanted[j].high);
    __builtin_prefetch(segments[j]->key_at(at[j]));
  }
  for (int round = 0; round < kBetterGuesses; ++round) {
    for (std::size_t j = 0; j < n; ++j) {
      at[j] = segments[j]->better_guess(at[j], wanted[j]);
      __builtin_prefetch(segments[j]->key_at(at[j]));
    }
  }
  for (std::size_t j = 0; j < n; ++j) {
    const Segment& s = *segments[j];
    __builtin_prefetch(s.key_at(at[j] - std::min(at[j], kWindow / 2)));
    __builtin_prefetch(s.key_at(at[j] + kWindow / 2));  // past the keys lie other tables: no harm
  }
  for (std::size_t j = 0; j < n; ++j) {
    at[j] = segments[j]->first_not_below(at[j], wanted[j]);
    __builtin_prefetch(segments[j]->order_at(at[j]));
  }
  for (std::size_t j = 0; j < n; ++j) {
    const Segment& s = *segments[j];
    const bool found = at[j] < s.n_ && s.key(at[j]) == wanted[j];
    const std::uint64_t row = found ? s.order(at[j]) : s.n_;
    rows[j] = row < s.n_ ? static_cast<std::int64_t>(row) : -1;
  }
}

void Segment::find(const std::uint8_t* keys, std::size_t n, std::int64_t* rows) const {
  if (n_ == 0) {
    std::fill(rows, rows + n, -1);
    return;
  }
  const Segment* segments[kKeysAtOnce];
  std::fill(segments, segments + kKeysAtOnce, this);
  for (std::size_t begin = 0; begin < n; begin += kKeysAtOnce) {
    const std::size_t m = std::min(kKeysAtOnce, n - begin);
    Key wanted[kKeysAtOnce];
    for (std::size_t j = 0; j < m; ++j) wanted[j] = Key::load(keys + (begin + j) * kKeyBytes);
    find_each(segments, wanted, m, rows + begin);
  }
}

bool Segment::row_is_good(const std::uint8_t* key, std::uint64_t row) const {
  std::uint32_t stored;
  std::memcpy(&stored, base_ + layout_.crcs + row * 4, 4);
  std::uint32_t crc = crc32c(key, kKeyBytes);
  if (has_scales()) crc = crc32c(scale_at(row), kScaleBytes, crc);
  return crc32c(this->row(row), row_bytes_, crc) == stored;
}

std::vector<std::int64_t> Segment::damaged_rows() const {
  std::vector<std::uint8_t> seen(n_, 0);
  std::vector<std::int64_t> damaged;
  for (std::size_t i = 0; i < n_; ++i) {
    const std::uint64_t row = order(i);
    if (row < n_ && row_is_good(key_at(i), row)) seen[row] = 1;
  }
  for (std::size_t row = 0; row < n_; ++row)
    if (!seen[row]) damaged.push_back(static_cast<std::int64_t>(row));
  return damaged;
}

Segment::Intact Segment::intact() const {
  constexpr std::size_t kMostTries = 1 << 16;
  Intact result;
  result.claimed.resize(n_ * kKeyBytes);
  std::vector<std::uint8_t> key_of_row(there_ * kKeyBytes), found(there_, 0);
  std::vector<std::size_t> keys_left, rows_left;
  const auto claim = [&](const std::uint8_t* key, std::uint64_t row) {
    if (row >= there_ || found[row] || !row_is_good(key, row)) return false;
    std::memcpy(key_of_row.data() + row * kKeyBytes, key, kKeyBytes);
    return (found[row] = 1) == 1;
  };
  for (std::size_t i = 0; i < n_; ++i) {
    const std::uint64_t row = order(i);
    if (row < n_) std::memcpy(result.claimed.data() + row * kKeyBytes, key_at(i), kKeyBytes);
    if (!claim(key_at(i), row)) keys_left.push_back(i);
  }
  for (std::size_t row = 0; row < there_; ++row)
    if (!found[row]) rows_left.push_back(row);
  // A wrong entry in `order` parts a good key from its good row, and so does a wrong bit of a key.
  if (keys_left.size() * rows_left.size() <= kMostTries) {
    for (std::size_t i : keys_left)
      for (std::size_t row : rows_left) claim(key_at(i), row);
    std::uint8_t key[kKeyBytes];
    for (std::size_t i : keys_left)
      for (int bit = 0; bit < 8 * static_cast<int>(kKeyBytes); ++bit) {
        std::memcpy(key, key_at(i), kKeyBytes);
        key[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
        claim(key, order(i));
      }
  }
  for (std::size_t row = 0; row < there_; ++row) {
    if (!found[row]) continue;
    const std::uint8_t* key = key_of_row.data() + row * kKeyBytes;
    result.keys.insert(result.keys.end(), key, key + kKeyBytes);
    result.rows.push_back(static_cast<std::int64_t>(row));
  }
  return result;
}

std::uint32_t Segment::crc_of(std::uint64_t offset, std::uint64_t size) const {
  return crc32c(base_ + offset, size);
}

std::vector<std::size_t> Segment::in_row_order() const {
  constexpr std::size_t kNone = ~std::size_t{0};
  std::vector<std::size_t> places(n_, kNone), second;
  for (std::size_t i = 0; i < n_; ++i) {
    const std::uint64_t row = order(i);
    if (row >= n_) continue;
    if (places[row] == kNone) {
      places[row] = i;
    } else {
      second.push_back(i);
    }
  }
  places.erase(std::remove(places.begin(), places.end(), kNone), places.end());
  places.insert(places.end(), second.begin(), second.end());
  return places;
}

std::vector<std::uint8_t> Segment::keys_in_row_order() const {
  const std::vector<std::size_t> places = in_row_order();
  std::vector<std::uint8_t> keys(places.size() * kKeyBytes);
  for (std::size_t k = 0; k < places.size(); ++k)
    std::memcpy(keys.data() + k * kKeyBytes, key_at(places[k]), kKeyBytes);
  return keys;
}

std::uint64_t Segment::offset(std::int64_t row) const {
  return layout_.rows + static_cast<std::uint64_t>(row) * row_bytes_;
}

}  // namespace pyfeat::store
