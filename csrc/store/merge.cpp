#include "merge.h"

#include <cerrno>

namespace pyfeat::store {

void merge(const Picked& p, const RowFormat& format, const std::string& hidden,
           const std::string& path) {
  if (p.n == 0) return;
  const auto record = [&](std::size_t i) {
    const Segment& segment = *p.segments[static_cast<std::size_t>(p.source[i])];
    const auto row = static_cast<std::uint64_t>(p.row[i]);
    return Record{p.keys + i * kKeyBytes, segment.scale_at(row), segment.row(row),
                  segment.crc(row)};
  };
  for (std::size_t i = 0; i < p.n; ++i) {
    const Segment& segment = *p.segments[static_cast<std::size_t>(p.source[i])];
    if (!segment.row_is_good(p.keys + i * kKeyBytes, static_cast<std::uint64_t>(p.row[i])))
      throw StoreError(
          EIO, "byte " + std::to_string(segment.offset(p.row[i])) + ": the row fails its checksum",
          segment.path());
  }
  write_segment(p.n, record, format, hidden, [&] { return path; });
}

}  // namespace pyfeat::store
