// From tail to segment.
#pragma once

#include <cstdint>
#include <string>

#include "tail.h"

namespace pyfeat::store {

// Writes the newest good record of each key of `tail` as a safetensors file at `path`, all or
// nothing: a hidden file is written and synced, then renamed, then the folder is synced. Removes
// the tail after that. A tail without a good record is only removed.
// `dtype` is "F32" or "F16"; `space` goes into the metadata. Returns the number of rows.
std::size_t seal(Tail& tail, const std::string& path, const std::string& dtype, std::size_t dim,
                 const std::string& space);

}  // namespace pyfeat::store
