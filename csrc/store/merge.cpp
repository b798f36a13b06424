#include "merge.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <vector>

namespace pyfeat::store {
namespace {

constexpr std::size_t kWriteBytes = 4 << 20;

const Segment& segment_of(const Picked& p, std::size_t i) {
  return *p.segments[static_cast<std::size_t>(p.source[i])];
}

void check(const Picked& p) {
  for (std::size_t i = 0; i < p.n; ++i) {
    const Segment& segment = segment_of(p, i);
    if (!segment.row_is_good(p.keys + i * kKeyBytes, static_cast<std::uint64_t>(p.row[i])))
      throw StoreError(EIO,
                       "byte " + std::to_string(segment.offset(p.row[i])) +
                           ": the row fails its checksum",
                       segment.path());
  }
}

Columns make_columns(const Picked& p) {
  Columns c{std::vector<std::uint8_t>(p.n * kKeyBytes), std::vector<std::uint64_t>(p.n),
            std::vector<std::uint32_t>(p.n)};
  std::iota(c.order.begin(), c.order.end(), 0);
  std::sort(c.order.begin(), c.order.end(), [&](std::uint64_t a, std::uint64_t b) {
    return Key::load(p.keys + a * kKeyBytes) < Key::load(p.keys + b * kKeyBytes);
  });
  for (std::size_t i = 0; i < p.n; ++i) {
    std::memcpy(c.keys.data() + i * kKeyBytes, p.keys + c.order[i] * kKeyBytes, kKeyBytes);
    c.crcs[i] = segment_of(p, i).crc(static_cast<std::uint64_t>(p.row[i]));
  }
  return c;
}

// Appends what `find(segment, row)` points at, `size` bytes of each row.
template <typename Find>
void write_column(File& file, const Picked& p, std::size_t size, const Find& find) {
  std::vector<std::uint8_t> buffer;
  buffer.reserve(kWriteBytes + size);
  for (std::size_t i = 0; i < p.n; ++i) {
    const std::uint8_t* from = find(segment_of(p, i), static_cast<std::uint64_t>(p.row[i]));
    buffer.insert(buffer.end(), from, from + size);
    if (buffer.size() >= kWriteBytes) {
      file.append(buffer.data(), buffer.size());
      buffer.clear();
    }
  }
  if (!buffer.empty()) file.append(buffer.data(), buffer.size());
}

}  // namespace

void merge(const Picked& p, const RowFormat& format, const std::string& space,
           const std::string& hidden, const std::string& path) {
  check(p);
  const Columns columns = make_columns(p);
  remove_file(hidden);  // of a merge that did not finish
  {
    File file = File::create(hidden);
    write_tables(file, columns, format, space);
    if (format.scale_bytes > 0)
      write_column(file, p, format.scale_bytes,
                   [](const Segment& s, std::uint64_t row) { return s.scale_at(row); });
    write_column(file, p, format.row_bytes - format.scale_bytes,
                 [](const Segment& s, std::uint64_t row) { return s.row(row); });
    file.sync();
  }
  rename_file(hidden, path);
  sync_folder_of(path);
}

}  // namespace pyfeat::store
