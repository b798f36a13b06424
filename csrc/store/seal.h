// From tail to segment.
#pragma once

#include <string>

#include "segment_writer.h"
#include "tail.h"

namespace pyfeat::store {

// Writes the newest good record of each key of `tail` as a segment (see `write_segment`).
// Then the tail is removed, or renamed to `aside` where that is not empty. Without a good record no
// file is written. Returns the number of rows.
std::size_t seal(Tail& tail, const Name& name, const RowFormat& format, const std::string& aside);

}  // namespace pyfeat::store
