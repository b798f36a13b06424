// One image from pixels to a slot of a batch, for bindings: needs no Python and no lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../cpu/resize_weights.h"

namespace pyfeat {

// Pixels of a row are adjacent, rows `stride` bytes apart. They are resized to (height, width), of
// which the crop begins at (top, left): negative where background comes first.
struct Picture {
  const std::uint8_t* image;
  std::int64_t stride, h, w;
  std::int64_t height, width, top, left;
};

// The result is (3, crop, crop) of item_bytes (1, 2 or 4) each: table[c][byte]. Byte c of `fill` is
// the background of channel c.
struct Target {
  int crop;
  Filter filter;
  bool hflip;
  std::uint32_t fill;
  const void* table;
  int item_bytes;
};

void preprocess_one(const Picture& picture, const Target& target, void* out);

}  // namespace pyfeat
