// A segment of any bytes under any layout: refused, or read without a step outside and without a
// row whose checksum does not fit.
//
// Input: flags, row bytes, begin of the tables, then (flag 1) a layout of six 64-bit numbers, and
// the file's content.
#include <algorithm>
#include <cstring>

#include "../store/segments.h"
#include "scratch.h"

namespace pyfeat::fuzz {
namespace {

using store::kKeyBytes;
using store::Segment;
using store::SegmentLayout;
using store::StoreError;
using Bytes = std::vector<std::uint8_t>;

constexpr std::uint8_t kAnyLayout = 1, kSorted = 2, kGoodCrcs = 4, kWiden = 8;

struct Case {
  Case(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    flags = input.byte();
    row_bytes = 1 + input.byte() % 32;
    const std::size_t offset = input.byte() % 64;
    if (flags & kAnyLayout) {
      n = input.number(8);
      row_bytes = input.number(8);
      layout = {input.number(8), input.number(8), input.number(8), input.number(8)};
      content = input.rest();
      return;
    }
    content = input.rest();
    const std::size_t begin = std::min(offset, content.size());
    n = (content.size() - begin) / (kKeyBytes + 8 + 4 + row_bytes);
    layout = {begin, begin + 16 * n, begin + 24 * n, begin + 28 * n};
    if (flags & kSorted) sort_keys();
    if (flags & kGoodCrcs) set_crcs();
  }
  const std::uint8_t* key(std::size_t i) const {
    return content.data() + layout.keys + i * kKeyBytes;
  }
  const std::uint8_t* row(std::size_t i) const {
    return content.data() + layout.rows + i * row_bytes;
  }
  std::uint64_t order(std::size_t i) const {
    std::uint64_t row;
    std::memcpy(&row, content.data() + layout.order + i * 8, 8);
    return row;
  }
  bool is_good(const std::uint8_t* key, std::size_t i) const {
    std::uint32_t stored;
    std::memcpy(&stored, content.data() + layout.crcs + i * 4, 4);
    return slow_crc(row(i), row_bytes, slow_crc(key, kKeyBytes)) == stored;
  }
  void sort_keys() {
    std::vector<Bytes> keys;
    for (std::size_t i = 0; i < n; ++i) keys.emplace_back(key(i), key(i) + kKeyBytes);
    std::sort(keys.begin(), keys.end());
    for (std::size_t i = 0; i < n; ++i)
      std::copy(keys[i].begin(), keys[i].end(), content.data() + layout.keys + i * kKeyBytes);
  }
  // Makes `order` name rows of the segment, and their CRCs right.
  void set_crcs() {
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint64_t to = order(i) % n;
      const std::uint32_t crc = slow_crc(row(to), row_bytes, slow_crc(key(i), kKeyBytes));
      std::memcpy(content.data() + layout.order + i * 8, &to, 8);
      std::memcpy(content.data() + layout.crcs + to * 4, &crc, 4);
    }
  }

  std::uint8_t flags;
  std::size_t n, row_bytes;
  SegmentLayout layout;
  Bytes content;
};

// Every key of the segment, and every stretch of 16 bytes of its rows as one that is no key.
Bytes wanted_keys(const Case& c) {
  Bytes keys(c.key(0), c.key(0) + c.n * kKeyBytes);
  const std::size_t size = std::min<std::size_t>(c.n * c.row_bytes, 1024);
  for (std::size_t at = 0; at + kKeyBytes <= size; at += kKeyBytes)
    keys.insert(keys.end(), c.row(0) + at, c.row(0) + at + kKeyBytes);
  return keys;
}

void check_found(const Case& c, const Bytes& keys, const std::vector<std::int64_t>& rows) {
  for (std::size_t k = 0; k < rows.size(); ++k) {
    const std::uint8_t* wanted = keys.data() + k * kKeyBytes;
    bool is_there = false, is_named = false;
    for (std::size_t i = 0; i < c.n && !is_named; ++i) {
      if (std::memcmp(c.key(i), wanted, kKeyBytes) != 0 || c.order(i) >= c.n) continue;
      is_there = true;
      is_named = rows[k] == static_cast<std::int64_t>(c.order(i));
    }
    must(rows[k] < 0 || is_named, "a found row is one that the key names");
    const bool is_whole = (c.flags & (kAnyLayout | kSorted | kGoodCrcs)) == (kSorted | kGoodCrcs);
    must(!is_whole || (rows[k] >= 0) == is_there, "a key of a sorted table is found");
  }
}

void check_gathered(const Case& c, const Segment& segment, const Bytes& keys) {
  const std::size_t n = keys.size() / kKeyBytes;
  const store::Segments segments{&segment, &segment};
  const bool widen = (c.flags & kWiden) != 0;
  const std::size_t width = c.row_bytes * (widen ? 2 : 1);
  std::vector<std::int64_t> source(n), row(n);
  store::locate(segments, keys.data(), n, source.data(), row.data(), 1);
  Bytes out(n * width);
  const store::Request request{keys.data(), source.data(), row.data(), n, widen};
  const auto damaged = store::gather(segments, c.row_bytes, request, out.data(), 1);
  for (std::size_t i = 0; i < n; ++i) {
    if (source[i] < 0) continue;
    const auto number = static_cast<std::size_t>(row[i]);
    const bool is_damaged =
        std::binary_search(damaged.begin(), damaged.end(), static_cast<std::int64_t>(i));
    must(is_damaged != c.is_good(keys.data() + i * kKeyBytes, number), "damage is told");
    if (!widen)
      must(std::memcmp(out.data() + i * width, c.row(number), width) == 0, "the row is copied");
  }
}

void run(const Case& c) {
  const std::string path = scratch_folder() + "/segment";
  write_file(path, c.content, c.content.size());
  try {
    const Segment segment(path, c.n, c.row_bytes, c.layout);
    segment.damaged_rows();
    segment.keys_in_row_order();
    segment.crc_of(c.layout.keys, 16 * c.n);
    segment.crc_of(c.layout.order, 8 * c.n);
    segment.crc_of(c.layout.crcs, 4 * c.n);
    if (c.n == 0) return;
    const Bytes keys = wanted_keys(c);
    std::vector<std::int64_t> rows(keys.size() / kKeyBytes);
    segment.find(keys.data(), rows.size(), rows.data());
    check_found(c, keys, rows);
    check_gathered(c, segment, keys);
  } catch (const StoreError&) {
    must((c.flags & kAnyLayout) != 0, "a layout made for the file is taken");
  }
}

}  // namespace
}  // namespace pyfeat::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pyfeat::fuzz::run(pyfeat::fuzz::Case(data, size));
  return 0;
}
