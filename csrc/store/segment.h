// A sealed segment: an immutable safetensors file of rows, with their keys sorted beside them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "file.h"
#include "format.h"

namespace pyfeat::store {

// Where the tensors of a segment begin, in bytes from the start of the file.
struct SegmentLayout {
  std::uint64_t keys;   // (n, 16) uint8, ascending
  std::uint64_t order;  // (n,) uint64, row number of each key
  std::uint64_t crcs;   // (n,) uint32, CRC32C of key and row, in row order
  std::uint64_t rows;   // (n, d), in the order written
};

// A mapped segment. Const methods may be called from any thread.
class Segment {
 public:
  // Throws StoreError when the file is shorter than the layout says.
  Segment(const std::string& path, std::size_t n, std::size_t row_bytes, SegmentLayout layout);

  // rows[i] = row number of keys[i], or -1. About two cache misses a key: keys are hashes, so
  // where one lies follows from its value.
  void find(const std::uint8_t* keys, std::size_t n, std::int64_t* rows) const;
  // Copies row rows[i] to out[positions[i]] on `threads` threads. Returns the i whose key, row or
  // CRC do not belong together.
  std::vector<std::int64_t> gather(const std::uint8_t* keys, const std::int64_t* rows,
                                   const std::int64_t* positions, std::size_t n, std::uint8_t* out,
                                   std::size_t threads) const;
  // Row numbers whose CRC does not fit, and of entries of `order` that name no row.
  std::vector<std::int64_t> damaged_rows() const;
  // CRC32C of a byte range of the file.
  std::uint32_t crc_of(std::uint64_t offset, std::uint64_t size) const;
  // Keys in the order the rows were written.
  std::vector<std::uint8_t> keys_in_row_order() const;

  std::uint64_t offset(std::int64_t row) const;
  std::size_t size() const { return n_; }
  std::size_t row_bytes() const { return row_bytes_; }
  const std::string& path() const { return path_; }

 private:
  Key key(std::size_t i) const { return Key::load(base_ + layout_.keys + i * kKeyBytes); }
  std::uint64_t order(std::size_t i) const;
  bool row_is_good(const std::uint8_t* key, std::uint64_t row) const;
  std::int64_t find_one(const Key& wanted) const;

  std::string path_;
  std::size_t n_;
  std::size_t row_bytes_;
  SegmentLayout layout_;
  Mapping map_;
  const std::uint8_t* base_;
};

}  // namespace pyfeat::store
