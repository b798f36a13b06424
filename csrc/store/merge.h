// From segments to a segment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "segment_writer.h"
#include "segments.h"

namespace pyfeat::store {

// Rows of segments, in the order in which they are to lie in a new one. Keys are different.
struct Picked {
  const Segments& segments;
  const std::uint8_t* keys;
  const std::int64_t* source;  // number of a segment
  const std::int64_t* row;
  std::size_t n;
};

// Writes rows as a segment at `path` (see `write_segment`); nothing where there are none. Every row
// is checked before: StoreError names the first that fails its checksum.
void merge(const Picked& picked, const RowFormat& format, const std::string& hidden,
           const std::string& path);

}  // namespace pyfeat::store
