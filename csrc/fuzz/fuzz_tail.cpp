// A tail of any bytes: read while it grows and after it was cut, adopted, sealed, read as a
// segment.
//
// Input: row bytes (and in the highest bit whether rows begin with a scale), cut (2 bytes), records
// whose CRC is set right (a bit each), file content.
#include <unistd.h>

#include <cstring>
#include <map>

#include "../store/seal.h"
#include "../store/segment.h"
#include "scratch.h"

namespace pyfeat::fuzz {
namespace {

using store::kKeyBytes;
using store::Segment;
using store::StoreError;
using store::Tail;
using Bytes = std::vector<std::uint8_t>;

struct Case {
  Case(const std::uint8_t* data, std::size_t size) {
    Input input(data, size);
    const std::uint8_t shape = input.byte();
    scale_bytes = shape >> 7 ? store::kScaleBytes : 0;
    row_bytes = 1 + shape % 32 + scale_bytes;
    const std::uint64_t wanted = input.number(2);
    const std::uint8_t whole = input.byte();
    content = input.rest();
    cut = content.empty() ? 0 : wanted % (content.size() + 1);
    for (std::size_t i = 0; at(i) + record_size() <= content.size(); ++i)
      if (whole >> (i % 8) & 1) set_crc(content.data() + at(i));
  }
  std::size_t record_size() const { return store::record_bytes(row_bytes); }
  std::size_t at(std::size_t i) const { return sizeof(store::TailHeader) + i * record_size(); }
  void set_crc(std::uint8_t* record) const {
    const std::uint32_t crc = slow_crc(record, kKeyBytes + row_bytes);
    std::memcpy(record + kKeyBytes + row_bytes, &crc, 4);
  }
  // What the first `size` bytes hold: the newest good row of each key.
  std::map<Bytes, Bytes> rows(std::size_t size) const {
    std::map<Bytes, Bytes> found;
    for (std::size_t i = 0; at(i) + record_size() <= size; ++i) {
      const std::uint8_t* r = content.data() + at(i);
      const std::uint8_t* row = r + kKeyBytes;
      std::uint32_t stored;
      std::memcpy(&stored, row + row_bytes, 4);
      if (slow_crc(r, kKeyBytes + row_bytes) == stored)
        found[Bytes(r, row)] = Bytes(row, row + row_bytes);
    }
    return found;
  }

  std::size_t row_bytes, scale_bytes, cut;
  Bytes content;
};

// The tail gives these rows and no others.
void check_tail(Tail& tail, const Case& c, const std::map<Bytes, Bytes>& rows) {
  const Bytes keys = tail.keys();
  const std::size_t n = keys.size() / kKeyBytes;
  must(n == rows.size(), "a tail has every good row, and no other");
  std::vector<std::int64_t> numbers(n), positions(n);
  for (std::size_t i = 0; i < n; ++i) positions[i] = static_cast<std::int64_t>(n - 1 - i);
  Bytes out(n * c.row_bytes);
  tail.find(keys.data(), n, numbers.data());
  const auto damaged = tail.gather(keys.data(), numbers.data(), positions.data(), n, out.data());
  must(damaged.empty(), "a good row is not damaged");
  for (std::size_t i = 0; i < n; ++i) {
    const auto row = rows.find(Bytes(&keys[i * kKeyBytes], &keys[i * kKeyBytes] + kKeyBytes));
    must(row != rows.end(), "a key of a tail has a good row");
    const std::uint8_t* got = out.data() + (n - 1 - i) * c.row_bytes;
    must(std::memcmp(got, row->second.data(), c.row_bytes) == 0, "the row is the newest one");
  }
  tail.damaged_offsets();
  tail.version();
}

// What another program has cut off gives an error and no signal.
void read_cut(Tail& tail, std::size_t n) {
  Bytes key(kKeyBytes), out(tail.row_bytes());
  const std::int64_t last = static_cast<std::int64_t>(n) - 1, zero = 0;
  try {
    if (n > 0) tail.gather(key.data(), &last, &zero, 1, out.data());
    tail.keys();
  } catch (const StoreError&) {
  }
  tail.refresh();
  tail.version();
}

void check_segment(const std::string& path, const Case& c, const std::map<Bytes, Bytes>& rows) {
  const std::size_t n = rows.size();
  const Bytes file = read_file(path);
  std::uint64_t length;
  std::memcpy(&length, file.data(), 8);
  const std::uint64_t keys = 8 + length, order = keys + 16 * n, crcs = order + 8 * n;
  const std::uint64_t scales = crcs + 4 * n, rows_at = scales + c.scale_bytes * n;
  const std::size_t code_bytes = c.row_bytes - c.scale_bytes;
  must(file.size() == rows_at + n * code_bytes, "a segment has the size of its tables");
  const Segment segment(path, n, code_bytes,
                        {keys, order, crcs, c.scale_bytes > 0 ? scales : 0, rows_at}, n);
  must(segment.damaged_rows().empty(), "a new segment is whole");
  must(segment.keys_in_row_order().size() == n * kKeyBytes, "a segment has every key");
  for (const auto& [key, row] : rows) {
    std::int64_t found;
    segment.find(key.data(), 1, &found);
    must(found >= 0, "a sealed key is found");
    const auto number = static_cast<std::size_t>(found);
    const std::uint8_t* scale = file.data() + scales + number * c.scale_bytes;
    must(std::memcmp(scale, row.data(), c.scale_bytes) == 0, "a scale is that of the tail");
    must(std::memcmp(segment.row(number), row.data() + c.scale_bytes, code_bytes) == 0,
         "a sealed row is that of the tail");
  }
}

void run(const Case& c) {
  const std::string path = scratch_folder() + "/0-0.tail", sealed = scratch_folder() + "/1-0.st";
  write_file(path, c.content, c.cut);
  {
    const auto tail = Tail::open(path, c.row_bytes);
    check_tail(*tail, c, c.rows(c.cut));
    write_file(path, c.content, c.content.size());
    tail->refresh();
    check_tail(*tail, c, c.rows(c.content.size()));
    must(::truncate(path.c_str(), static_cast<off_t>(c.cut)) == 0, "a file can be cut");
    read_cut(*tail, tail->size());
  }
  write_file(path, c.content, c.content.size());
  const auto rows = c.rows(c.content.size());
  const auto tail = Tail::adopt(path, c.row_bytes);
  must(tail != nullptr, "a tail that nobody holds is adopted");
  check_tail(*tail, c, rows);
  const store::RowFormat format{c.scale_bytes > 0 ? "I8" : "U8", 1, c.row_bytes, c.scale_bytes, ""};
  must(seal(*tail, [&] { return sealed; }, format, "") == rows.size(), "every good row is sealed");
  if (rows.empty()) return;
  check_segment(sealed, c, rows);
  store::remove_file(sealed);
}

}  // namespace
}  // namespace pyfeat::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  pyfeat::fuzz::run(pyfeat::fuzz::Case(data, size));
  return 0;
}
