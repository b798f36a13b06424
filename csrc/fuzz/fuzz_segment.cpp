// A segment of any bytes under any layout: refused, or read without a step outside and without a
// row whose checksum does not fit.
//
// Input: flags, row bytes, begin of the tables, then (flag 1) a layout of seven numbers of 3 bytes,
// and the file's content.
#include <algorithm>
#include <cstring>

#include "../store/segment_index.h"
#include "../store/segments.h"
#include "scratch.h"

namespace pyfeat::fuzz {
namespace {

using store::kKeyBytes;
using store::kScaleBytes;
using store::Segment;
using store::SegmentLayout;
using store::StoreError;
using Bytes = std::vector<std::uint8_t>;

constexpr std::uint8_t kAnyLayout = 1, kSorted = 2, kGoodCrcs = 4, kDecode = 8;
constexpr int kItemBits = 4;  // the two above say what rows are made of

// A number at either end of 64 bits, or near a power of two between.
std::uint64_t wide(Input& input) {
  const auto small = static_cast<std::int16_t>(input.number(2));
  return static_cast<std::uint64_t>(std::int64_t{small}) << (input.byte() % 4 * 16);
}

struct Case {
  Case(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    flags = input.byte();
    item = static_cast<Item>(flags >> kItemBits & 3);
    row_bytes = (1 + input.byte() % 16) * static_cast<std::size_t>(bytes_of(item));
    const std::size_t offset = 1 + input.byte() % 64;
    if (flags & kAnyLayout) {
      n = wide(input);
      row_bytes = wide(input);
      row_bytes -= row_bytes % static_cast<std::size_t>(bytes_of(item));
      if (row_bytes == 0) row_bytes = static_cast<std::size_t>(bytes_of(item));
      for (std::uint64_t* table :
           {&layout.keys, &layout.order, &layout.crcs, &layout.scales, &layout.rows})
        *table = wide(input);
      if (!has_scales()) layout.scales = 0;
      if (has_scales() && layout.scales == 0) item = Item::kFloat32;
      content = input.rest();
      return;
    }
    content = input.rest();
    const std::size_t begin = std::min(offset, content.size());
    const std::size_t scale = has_scales() ? kScaleBytes : 0;
    n = (content.size() - begin) / (kKeyBytes + 8 + 4 + scale + row_bytes);
    const std::uint64_t crcs = begin + 24 * n, scales = crcs + 4 * n;
    layout = {begin, begin + 16 * n, crcs, has_scales() ? scales : 0, scales + scale * n};
    if (begin == 0 && has_scales()) layout.scales = 0, item = Item::kFloat32, n = 0;
    if (flags & kSorted) sort_keys();
    if (flags & kGoodCrcs) set_crcs();
  }
  bool has_scales() const { return item == Item::kInt8; }
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
  const std::uint8_t* scale(std::size_t i) const {
    return content.data() + layout.scales + i * kScaleBytes;
  }
  std::uint32_t crc(const std::uint8_t* key, std::size_t i) const {
    std::uint32_t crc = slow_crc(key, kKeyBytes);
    if (has_scales()) crc = slow_crc(scale(i), kScaleBytes, crc);
    return slow_crc(row(i), row_bytes, crc);
  }
  bool is_good(const std::uint8_t* key, std::size_t i) const {
    std::uint32_t stored;
    std::memcpy(&stored, content.data() + layout.crcs + i * 4, 4);
    return crc(key, i) == stored;
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
      const std::uint32_t good = crc(key(i), to);
      std::memcpy(content.data() + layout.order + i * 8, &to, 8);
      std::memcpy(content.data() + layout.crcs + to * 4, &good, 4);
    }
  }

  std::uint8_t flags;
  Item item;
  std::size_t n, row_bytes;
  SegmentLayout layout{};
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

// `same` is the segment `copies` times: asked often, an index makes a map of their keys.
void check_gathered(const Case& c, const std::shared_ptr<const Segment>& segment, const Bytes& keys,
                    std::size_t copies) {
  const std::size_t n = keys.size() / kKeyBytes;
  const std::vector<std::shared_ptr<const Segment>> same(copies, segment);
  std::vector<std::int64_t> source(n), row(n), found(n);
  store::SegmentIndex index(same);
  for (int round = 0; round < 2; ++round)
    index.locate(keys.data(), n, source.data(), row.data(), 1);
  segment->find(keys.data(), n, found.data());
  must(found == row, "an index finds what its segments find");

  const store::Segments segments(copies, segment.get());
  const bool decode = (c.flags & kDecode) != 0;
  const store::Request request{keys.data(), source.data(), row.data(), n, c.item, decode};
  const std::size_t width = store::out_bytes(request, c.row_bytes);
  std::vector<float> aligned((n * width + 3) / 4);
  auto* out = reinterpret_cast<std::uint8_t*>(aligned.data());
  const auto damaged = store::gather(segments, c.row_bytes, request, out, 1);
  for (std::size_t i = 0; i < n; ++i) {
    if (source[i] < 0) continue;
    const auto number = static_cast<std::size_t>(row[i]);
    const bool is_damaged =
        std::binary_search(damaged.begin(), damaged.end(), static_cast<std::int64_t>(i));
    must(is_damaged != c.is_good(keys.data() + i * kKeyBytes, number), "damage is told");
    if (decode) continue;
    const std::uint8_t* got = out + i * width;
    if (c.has_scales())
      must(std::memcmp(got, c.scale(number), kScaleBytes) == 0, "the scale is copied");
    got += width - c.row_bytes;
    must(std::memcmp(got, c.row(number), c.row_bytes) == 0, "the row is copied");
  }
}

void run(const Case& c) {
  const std::string path = scratch_folder() + "/segment";
  write_file(path, c.content, c.content.size());
  try {
    const auto segment = std::make_shared<const Segment>(path, c.n, c.row_bytes, c.layout);
    segment->damaged_rows();
    segment->keys_in_row_order();
    segment->crc_of(c.layout.keys, 16 * c.n);
    segment->crc_of(c.layout.order, 8 * c.n);
    segment->crc_of(c.layout.crcs, 4 * c.n);
    if (c.n == 0) return;
    const Bytes keys = wanted_keys(c);
    std::vector<std::int64_t> rows(keys.size() / kKeyBytes);
    segment->find(keys.data(), rows.size(), rows.data());
    check_found(c, keys, rows);
    for (const std::size_t copies : {1, 4}) check_gathered(c, segment, keys, copies);
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
