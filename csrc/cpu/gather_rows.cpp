// Random rows wait for memory, not for arithmetic: while one row is copied, some later ones are on
// their way into the cache.
#include "gather_rows.h"

#include "convert.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr std::ptrdiff_t kLine = 64;
constexpr std::ptrdiff_t kBytesAhead = 8192;  // a quarter of the first-level cache
constexpr std::ptrdiff_t kRowsAhead = 32;
constexpr std::ptrdiff_t kHead = 4096;  // of a longer row the CPU fetches the rest by itself

// How many rows ahead to fetch, for rows of this size.
std::ptrdiff_t distance(std::ptrdiff_t bytes) {
  const std::ptrdiff_t rows = kBytesAhead / (bytes > 0 ? bytes : 1);
  return rows < 1 ? 1 : rows < kRowsAhead ? rows : kRowsAhead;
}

void fetch(const std::uint8_t* row, std::ptrdiff_t bytes) {
  const std::ptrdiff_t head = bytes < kHead ? bytes : kHead;
  for (std::ptrdiff_t at = 0; at < head; at += kLine) __builtin_prefetch(row + at);
  // A row need not begin at a line's beginning: its last byte may lie in one line more.
  if (head > 0) __builtin_prefetch(row + head - 1);
}

}  // namespace

void copy_rows(const PickedRows& from, std::uint8_t* out) {
  const std::ptrdiff_t ahead = distance(from.bytes), known = from.count + from.following;
  for (std::ptrdiff_t i = 0; i < from.count; ++i) {
    if (i + ahead < known) fetch(from.rows[i + ahead], from.bytes);
    std::memcpy(out + i * from.bytes, from.rows[i], static_cast<std::size_t>(from.bytes));
  }
}

void widen_rows(const PickedRows& from, Item item, std::ptrdiff_t d, const float* scales,
                float* out) {
  const std::ptrdiff_t ahead = distance(from.bytes), known = from.count + from.following;
  for (std::ptrdiff_t i = 0; i < from.count; ++i) {
    if (i + ahead < known) fetch(from.rows[i + ahead], from.bytes);
    to_floats(from.rows[i], item, d, scales ? scales[i] : 1.0f, out + i * d);
  }
}

}  // namespace pyfeat::PYFEAT_ISA
