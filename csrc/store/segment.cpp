#include "segment.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>

#include "crc32c.h"

namespace pyfeat::store {
namespace {

// Below this many bytes a second thread costs more than it brings.
constexpr std::size_t kBytesPerThread = 1 << 20;

// Where among n sorted hashes one with these leading bits is expected.
std::size_t expected_position(std::uint64_t high, std::size_t n) {
  return static_cast<std::size_t>((static_cast<unsigned __int128>(high) * n) >> 64);
}

}  // namespace

Segment::Segment(const std::string& path, std::size_t n, std::size_t row_bytes,
                 SegmentLayout layout)
    : path_(path), n_(n), row_bytes_(row_bytes), layout_(layout) {
  const File file = File::open_for_reading(path);
  const std::uint64_t need = std::max({layout.keys + n * kKeyBytes, layout.order + n * 8,
                                       layout.crcs + n * 4, layout.rows + n * row_bytes});
  if (file.size() < need) throw StoreError(EIO, "is shorter than its header says", path);
  map_ = Mapping(file, file.size());
  base_ = map_.data();
}

std::uint64_t Segment::order(std::size_t i) const {
  std::uint64_t row;
  std::memcpy(&row, base_ + layout_.order + i * 8, 8);
  return row;
}

std::int64_t Segment::find_one(const Key& wanted) const {
  // Invariant: every key before `low` is smaller than wanted, every key from `high` on is not.
  std::size_t low = 0, high = n_;
  const std::size_t guess = expected_position(wanted.high, n_);
  std::size_t step = 16;
  if (guess < n_ && key(guess) < wanted) {
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
  if (low >= n_ || !(key(low) == wanted)) return -1;
  const std::uint64_t row = order(low);
  return row < n_ ? static_cast<std::int64_t>(row) : -1;
}

void Segment::find(const std::uint8_t* keys, std::size_t n, std::int64_t* rows) const {
  for (std::size_t i = 0; i < n; ++i) rows[i] = find_one(Key::load(keys + i * kKeyBytes));
}

bool Segment::row_is_good(const std::uint8_t* key, std::uint64_t row) const {
  std::uint32_t stored;
  std::memcpy(&stored, base_ + layout_.crcs + row * 4, 4);
  return crc32c(base_ + layout_.rows + row * row_bytes_, row_bytes_, crc32c(key, kKeyBytes)) ==
         stored;
}

std::vector<std::int64_t> Segment::gather(const std::uint8_t* keys, const std::int64_t* rows,
                                          const std::int64_t* positions, std::size_t n,
                                          std::uint8_t* out, std::size_t threads) const {
  threads = std::max<std::size_t>(1, std::min(threads, n * row_bytes_ / kBytesPerThread));
  std::vector<std::uint8_t> good(n);  // made here: a worker must not throw
  const auto work = [&](std::size_t t) {
    for (std::size_t i = n * t / threads; i < n * (t + 1) / threads; ++i) {
      const auto row = static_cast<std::uint64_t>(rows[i]);
      std::memcpy(out + positions[i] * row_bytes_, base_ + layout_.rows + row * row_bytes_,
                  row_bytes_);
      good[i] = row_is_good(keys + i * kKeyBytes, row);
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(threads);
  std::size_t t = 1;
  try {
    for (; t < threads; ++t) helpers.emplace_back(work, t);
  } catch (const std::system_error&) {
    for (; t < threads; ++t) work(t);  // no more threads to be had
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
  std::vector<std::int64_t> damaged;
  for (std::size_t i = 0; i < n; ++i)
    if (!good[i]) damaged.push_back(static_cast<std::int64_t>(i));
  return damaged;
}

std::vector<std::int64_t> Segment::damaged_rows() const {
  std::vector<std::uint8_t> seen(n_, 0);
  std::vector<std::int64_t> damaged;
  for (std::size_t i = 0; i < n_; ++i) {
    const std::uint64_t row = order(i);
    if (row < n_ && row_is_good(base_ + layout_.keys + i * kKeyBytes, row)) seen[row] = 1;
  }
  for (std::size_t row = 0; row < n_; ++row)
    if (!seen[row]) damaged.push_back(static_cast<std::int64_t>(row));
  return damaged;
}

std::uint32_t Segment::crc_of(std::uint64_t offset, std::uint64_t size) const {
  return crc32c(base_ + offset, size);
}

std::vector<std::uint8_t> Segment::keys_in_row_order() const {
  std::vector<std::uint8_t> keys(n_ * kKeyBytes, 0);
  for (std::size_t i = 0; i < n_; ++i) {
    const std::uint64_t row = order(i);
    if (row < n_)
      std::memcpy(keys.data() + row * kKeyBytes, base_ + layout_.keys + i * kKeyBytes, kKeyBytes);
  }
  return keys;
}

std::uint64_t Segment::offset(std::int64_t row) const {
  return layout_.rows + static_cast<std::uint64_t>(row) * row_bytes_;
}

}  // namespace pyfeat::store
