#include "file_stats.h"

#include <sys/stat.h>

#include <algorithm>

#include "../parallel.h"

namespace pyfeat::store {
namespace {

constexpr std::size_t kFilesPerChunk = 256;
constexpr double kFilesPerThread = 256;

FileStat stat_file(const char* path) {
  struct stat s;
  if (::stat(path, &s) != 0 || !S_ISREG(s.st_mode)) return {-1, -1};
  return {s.st_size, s.st_mtim.tv_sec * std::int64_t{1'000'000'000} + s.st_mtim.tv_nsec};
}

}  // namespace

std::vector<FileStat> stat_files(const std::vector<const char*>& paths, std::size_t threads) {
  const std::size_t n = paths.size();
  std::vector<FileStat> stats(n);
  const auto work = [&](std::size_t chunk, std::size_t) {
    const std::size_t end = std::min(n, (chunk + 1) * kFilesPerChunk);
    for (std::size_t i = chunk * kFilesPerChunk; i < end; ++i) stats[i] = stat_file(paths[i]);
  };
  parallel((n + kFilesPerChunk - 1) / kFilesPerChunk,
           worthwhile_threads(threads, static_cast<double>(n), kFilesPerThread), work);
  return stats;
}

}  // namespace pyfeat::store
