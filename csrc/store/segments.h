// Rows of many keys from many segments, on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../cpu/item.h"
#include "segment.h"

namespace pyfeat::store {

using Segments = std::vector<const Segment*>;

// Rows where `SegmentIndex::locate` found them. A source that is no number of a segment gets a row
// of zeros.
struct Request {
  const std::uint8_t* keys;
  const std::int64_t* source;
  const std::int64_t* row;
  std::size_t n;
  Item item;    // what the rows are made of; int8 has scales
  bool decode;  // rows become float32; else they are as in a tail: codes behind their scale
};

// Bytes of one row of the answer, where one in a segment has `row_bytes`.
std::size_t out_bytes(const Request& request, std::size_t row_bytes);

// out[i] = row i of the request. Returns the i whose key, row or CRC do not belong together.
std::vector<std::int64_t> gather(const Segments& segments, std::size_t row_bytes,
                                 const Request& request, std::uint8_t* out, std::size_t threads);

}  // namespace pyfeat::store
