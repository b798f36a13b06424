// Size and time of change of many files at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyfeat::store {

// Both -1 for what is not there, cannot be asked about, or is no regular file.
struct FileStat {
  std::int64_t size;
  std::int64_t mtime_ns;
};

// Of the files that `paths` names, each ended by a zero byte; links are followed.
std::vector<FileStat> stat_files(const std::vector<const char*>& paths, std::size_t threads);

}  // namespace pyfeat::store
