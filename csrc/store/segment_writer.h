// How rows become a sealed segment, wherever they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "file.h"

namespace pyfeat::store {

// What the rows of a segment are. Scales, where there are some, are a tensor of their own.
struct RowFormat {
  std::string dtype;  // "F32", "F16", "BF16" or "I8"
  std::size_t dim;
  std::size_t row_bytes;    // of a record's row: its scale and its numbers
  std::size_t scale_bytes;  // the first of them; 0 where there are none
  std::string space;        // fingerprint
};

// One row, as it lies somewhere.
struct Record {
  const std::uint8_t* key;
  const std::uint8_t* scale;  // not looked at where the format has none
  const std::uint8_t* row;
  std::uint32_t crc;
};
// The i-th row of a segment to be. Is asked for each more than once.
using Records = std::function<Record(std::size_t)>;

// Writes `n` rows with different keys as a safetensors file, all or nothing: `hidden` is written
// and synced, then renamed, then the folder is synced. What was left under the name `hidden` by a
// writer that died is removed.
void write_segment(std::size_t n, const Records& records, const RowFormat& format,
                   const std::string& hidden, const Name& name);

}  // namespace pyfeat::store
