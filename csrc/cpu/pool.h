// One feature map or list of tokens to one row.
#pragma once

#include "item.h"
#include "kernels.h"

namespace pyfeat {

enum class Pooling { kAvg, kMax, kGem };

// Number (c, l) of an item is data[c * channel_stride + l * position_stride], in items; one of the
// strides is 1.
struct FeatureMap {
  const void* data;
  Item item;
  std::ptrdiff_t readable;  // numbers from `data` on that may be read
  std::ptrdiff_t channels, positions;
  std::ptrdiff_t channel_stride, position_stride;
};

// What becomes of it. With `first`, position 0 comes before what the others are pooled to, and the
// row is twice as long.
struct PoolPlan {
  Pooling method;
  bool first;
  double p;  // of kGem, at least 1
  bool l2;
  Item to;
};

// Floats of scratch that `pool` needs: rows end in room for a vector.
static inline std::size_t pool_scratch(std::ptrdiff_t channels) {
  return static_cast<std::size_t>(3 * (channels + 16));
}

// Writes one row; `scale` is set for int8 only.
PYFEAT_DECLARE(void, pool,
               (const FeatureMap& map, const PoolPlan& plan, float* scratch, void* out,
                float* scale))

}  // namespace pyfeat
