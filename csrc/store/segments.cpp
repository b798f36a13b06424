#include "segments.h"

#include <algorithm>
#include <cstring>

#include "../cpu/dispatch.h"
#include "../cpu/gather_rows.h"
#include "../parallel.h"

namespace pyfeat::store {
namespace {

constexpr std::size_t kRowsPerChunk = 512;
constexpr double kBytesPerThread = 1 << 19;
// Rows are checked right after they were copied, while they are in the first-level cache.
constexpr std::size_t kBytesPerCheck = 12 << 10;

// Writes rows as the request wants them; `scales` are those of int8 rows.
void write_rows(const Request& request, const PickedRows& picked, const float* scales,
                std::uint8_t* out) {
  const bool has_scales = request.item == Item::kInt8;
  if (request.decode) {
    PYFEAT_KERNEL(widen_rows)
    (picked, request.item, picked.bytes / bytes_of(request.item), has_scales ? scales : nullptr,
     reinterpret_cast<float*>(out));
    return;
  }
  if (!has_scales) return PYFEAT_KERNEL(copy_rows)(picked, out);
  const auto bytes = static_cast<std::size_t>(picked.bytes);
  for (std::ptrdiff_t i = 0; i < picked.count; ++i, out += kScaleBytes + bytes) {
    std::memcpy(out, scales + i, kScaleBytes);
    std::memcpy(out + kScaleBytes, picked.rows[i], bytes);
  }
}

}  // namespace

std::size_t out_bytes(const Request& request, std::size_t row_bytes) {
  if (request.decode)
    return row_bytes / static_cast<std::size_t>(bytes_of(request.item)) * sizeof(float);
  return row_bytes + (request.item == Item::kInt8 ? kScaleBytes : 0);
}

std::vector<std::int64_t> gather(const Segments& segments, std::size_t row_bytes,
                                 const Request& request, std::uint8_t* out, std::size_t threads) {
  const std::size_t n = request.n, width = out_bytes(request, row_bytes);
  const bool has_scales = request.item == Item::kInt8;
  const std::size_t step =
      std::max<std::size_t>(1, kBytesPerCheck / std::max<std::size_t>(1, row_bytes));
  const std::vector<std::uint8_t> zeros(row_bytes);
  std::vector<std::uint8_t> damaged(n);
  const auto segment_of = [&](std::size_t i) -> const Segment* {
    const auto s = static_cast<std::size_t>(request.source[i]);  // -1 becomes too large
    return s < segments.size() ? segments[s] : nullptr;
  };
  const auto work = [&](std::size_t chunk, std::size_t) {
    const std::size_t begin = chunk * kRowsPerChunk, size = std::min(kRowsPerChunk, n - begin);
    const std::uint8_t* rows[kRowsPerChunk];
    float scales[kRowsPerChunk];
    for (std::size_t i = 0; i < size; ++i) {
      const Segment* segment = segment_of(begin + i);
      const auto row = static_cast<std::uint64_t>(request.row[begin + i]);
      rows[i] = segment ? segment->row(row) : zeros.data();
      if (segment) segment->expect_check(row);
    }
    for (std::size_t first = 0; first < size; first += step) {
      const std::size_t count = std::min(step, size - first), at = begin + first;
      const PickedRows picked{rows + first, static_cast<std::ptrdiff_t>(count),
                              static_cast<std::ptrdiff_t>(size - first - count),
                              static_cast<std::ptrdiff_t>(row_bytes)};
      for (std::size_t i = at; has_scales && i < at + count; ++i) {
        const Segment* segment = segment_of(i);
        const auto row = static_cast<std::uint64_t>(request.row[i]);
        scales[i - begin] = segment ? segment->scale(row) : 0.0f;
      }
      write_rows(request, picked, scales + first, out + at * width);
      for (std::size_t i = at; i < at + count; ++i) {
        const Segment* segment = segment_of(i);
        damaged[i] = segment && !segment->row_is_good(request.keys + i * kKeyBytes,
                                                      static_cast<std::uint64_t>(request.row[i]));
      }
    }
  };
  parallel((n + kRowsPerChunk - 1) / kRowsPerChunk,
           worthwhile_threads(threads, static_cast<double>(n * row_bytes), kBytesPerThread), work);
  std::vector<std::int64_t> found;
  for (std::size_t i = 0; i < n; ++i)
    if (damaged[i]) found.push_back(static_cast<std::int64_t>(i));
  return found;
}

}  // namespace pyfeat::store
