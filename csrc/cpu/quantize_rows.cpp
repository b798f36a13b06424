// Memory-bound: a row is read once from memory, the second time (int8) from the first cache.
#include "quantize_rows.h"

#include "store_row.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr std::ptrdiff_t kPart = 2048;  // floats between two types

// Calls work(floats, first, n) for one part of a row after another, as float32.
template <typename Work>
void for_parts(const void* row, Item from, std::ptrdiff_t d, float scale, const Work& work) {
  float part[kPart];
  for (std::ptrdiff_t first = 0; first < d; first += kPart) {
    const std::ptrdiff_t n = d - first < kPart ? d - first : kPart;
    to_floats(skip_items(row, from, first), from, n, scale, part);
    work(part, first, n);
  }
}

std::uint8_t* at(void* out, Item item, std::ptrdiff_t i) {
  return static_cast<std::uint8_t*>(out) + i * bytes_of(item);
}

void quantize_row(const void* row, Item from, std::ptrdiff_t d, Item to, void* out, float* scale) {
  if (from == Item::kFloat32) return store_row(static_cast<const float*>(row), d, to, out, scale);
  if (d <= kPart) {
    float whole[kPart];
    to_floats(row, from, d, 1.0f, whole);
    return store_row(whole, d, to, out, scale);
  }
  float factor = 1.0f;
  if (to == Item::kInt8) {
    std::int32_t most = 0;
    for_parts(row, from, d, 1.0f, [&](const float* part, std::ptrdiff_t, std::ptrdiff_t n) {
      most = largest_bits(part, n, most);
    });
    const CodeScale codes = code_scale(most);
    *scale = codes.scale;
    factor = codes.factor;
    if (factor == 0.0f) {
      std::memset(out, 0, static_cast<std::size_t>(d));
      return;
    }
  }
  for_parts(row, from, d, 1.0f, [&](const float* part, std::ptrdiff_t first, std::ptrdiff_t n) {
    store_floats_as(part, n, to, factor, at(out, to, first));
  });
}

}  // namespace

void quantize_rows(const void* rows, Item from, std::ptrdiff_t stride, std::ptrdiff_t count,
                   std::ptrdiff_t d, Item to, void* out, float* scales) {
  for (std::ptrdiff_t i = 0; i < count; ++i)
    quantize_row(skip_items(rows, from, i * stride), from, d, to, at(out, to, i * d),
                 scales ? scales + i : nullptr);
}

void dequantize_rows(const void* rows, Item from, std::ptrdiff_t stride, std::ptrdiff_t count,
                     std::ptrdiff_t d, const float* scales, Item to, void* out) {
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    const void* row = skip_items(rows, from, i * stride);
    const float scale = from == Item::kInt8 ? scales[i] : 1.0f;
    if (to == Item::kFloat32) {
      to_floats(row, from, d, scale, static_cast<float*>(out) + i * d);
      continue;
    }
    for_parts(row, from, d, scale, [&](const float* part, std::ptrdiff_t first, std::ptrdiff_t n) {
      store_floats_as(part, n, to, 1.0f, at(out, to, i * d + first));
    });
  }
}

}  // namespace pyfeat::PYFEAT_ISA
