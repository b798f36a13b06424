// From tail to segment.
#pragma once

#include <cstdint>
#include <string>

#include "tail.h"

namespace pyfeat::store {

// Writes the newest good record of each key of `tail` as a safetensors file at `path`, all or
// nothing: a hidden file is written and synced, then renamed, then the folder is synced. Then the
// tail is removed, or renamed to `aside` where that is not empty. Without a good record no file is
// written. `dtype` is "F32", "F16", "BF16" or "I8", whose rows have scales; `space` goes into the
// metadata. Returns the number of rows.
std::size_t seal(Tail& tail, const std::string& path, const std::string& dtype, std::size_t dim,
                 const std::string& space, const std::string& aside);

}  // namespace pyfeat::store
