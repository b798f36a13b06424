// A sealed segment: an immutable safetensors file of rows, with their keys sorted beside them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "file.h"
#include "format.h"

namespace pyfeat::store {

// Where the tensors of a segment begin, in bytes from the start of the file.
struct SegmentLayout {
  std::uint64_t keys;    // (n, 16) uint8, ascending
  std::uint64_t order;   // (n,) uint64, row number of each key
  std::uint64_t crcs;    // (n,) uint32, CRC32C of key, scale and row, in row order
  std::uint64_t scales;  // (n,) float32, in row order; 0 where rows have none
  std::uint64_t rows;    // (n, d), in the order written
};

// A mapped segment. Const methods may be called from any thread.
class Segment {
 public:
  // Throws StoreError when the file is shorter than the layout says. Of a file that was cut off
  // `there` rows may be enough: of such a segment only tables and `intact` rows may be read.
  Segment(const std::string& path, std::size_t n, std::size_t row_bytes, SegmentLayout layout,
          std::size_t there);

  // rows[i] = row number of keys[i], or -1. Keys are hashes, so where one lies follows from its
  // value.
  void find(const std::uint8_t* keys, std::size_t n, std::int64_t* rows) const;
  static constexpr std::size_t kKeysAtOnce = 16;
  // The same for n <= kKeysAtOnce keys, each in a segment of its own, none of which is empty.
  static void find_each(const Segment* const* segments, const Key* wanted, std::size_t n,
                        std::int64_t* rows);
  const std::uint8_t* row(std::uint64_t row) const {
    return base_ + layout_.rows + row * row_bytes_;
  }
  bool has_scales() const { return layout_.scales != 0; }
  // What the codes of a row are multiplied with. Only where there are scales.
  float scale(std::uint64_t row) const {
    float scale;
    std::memcpy(&scale, scale_at(row), sizeof scale);
    return scale;
  }
  // Asks the cache for what belongs to a row besides the row itself.
  void expect_check(std::uint64_t row) const {
    __builtin_prefetch(base_ + layout_.crcs + row * sizeof(std::uint32_t));
    if (has_scales()) __builtin_prefetch(scale_at(row));
  }
  // Whether key, scale, row and CRC belong together.
  bool row_is_good(const std::uint8_t* key, std::uint64_t row) const;
  // Row numbers whose CRC does not fit, and of entries of `order` that name no row.
  std::vector<std::int64_t> damaged_rows() const;
  // What is good in a segment whose tables may be damaged, and of which rows may be cut off.
  struct Intact {
    std::vector<std::uint8_t> keys;     // that belong to `rows`
    std::vector<std::int64_t> rows;     // ascending
    std::vector<std::uint8_t> claimed;  // the key that `order` gives to each row; zeros for none
  };
  // Also finds keys whose entry in `order` is wrong, and those with one wrong bit.
  Intact intact() const;
  // CRC32C of a byte range of the file.
  std::uint32_t crc_of(std::uint64_t offset, std::uint64_t size) const;
  std::uint32_t crc(std::uint64_t row) const {
    std::uint32_t crc;
    std::memcpy(&crc, base_ + layout_.crcs + row * sizeof crc, sizeof crc);
    return crc;
  }
  // Where the scale of a row lies. Only where there are scales.
  const std::uint8_t* scale_at(std::uint64_t row) const {
    return base_ + layout_.scales + row * kScaleBytes;
  }
  // The i-th key in ascending order, and those behind it.
  const std::uint8_t* key_at(std::size_t i) const { return base_ + layout_.keys + i * kKeyBytes; }
  // Which of the sorted keys `find` finds, in the order their rows were written; in a damaged
  // `order` a row may be named by several keys, or by none.
  std::vector<std::size_t> in_row_order() const;
  // Those keys.
  std::vector<std::uint8_t> keys_in_row_order() const;

  std::uint64_t offset(std::int64_t row) const;
  std::size_t size() const { return n_; }
  const std::uint8_t* sorted_keys() const { return key_at(0); }
  // How many of the sorted keys are smaller than one.
  std::size_t count_below(const Key& key) const {
    return n_ == 0 ? 0 : search(expected_position(key.high), key);
  }
  // Row of the i-th of the sorted keys; no number of a row where the table is damaged.
  std::uint64_t row_of(std::size_t i) const { return order(i); }
  // Of a row in its tensor: without the scale.
  std::size_t row_bytes() const { return row_bytes_; }
  const std::string& path() const { return path_; }

 private:
  Key key(std::size_t i) const { return Key::load(key_at(i)); }
  const std::uint8_t* order_at(std::size_t i) const { return base_ + layout_.order + i * 8; }
  std::uint64_t order(std::size_t i) const;
  // Where among the keys, which are hashes, one with these leading bits is expected.
  std::size_t expected_position(std::uint64_t high) const {
    return static_cast<std::size_t>((static_cast<unsigned __int128>(high) * n_) >> 64);
  }
  std::size_t better_guess(std::size_t guess, const Key& wanted) const;
  std::size_t first_not_below(std::size_t guess, const Key& wanted) const;
  std::size_t search(std::size_t guess, const Key& wanted) const;

  std::string path_;
  std::size_t n_;
  std::size_t row_bytes_;
  std::size_t there_;
  SegmentLayout layout_;
  Mapping map_;
  const std::uint8_t* base_;
};

}  // namespace pyfeat::store
