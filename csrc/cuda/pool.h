// Feature maps to float32 rows on a GPU.
#pragma once

#include <cstdint>

namespace pyfeat::cuda {

// Number (i, c, l) is x[i * item_stride + c * channel_stride + l * position_stride], in numbers;
// one of the last two strides is 1. Row i of the result starts at rows[i * row_stride].
struct FoldMaps {
  const void* x;
  int item;    // 0 float32, 1 float16, 2 bfloat16
  int method;  // 0 avg, 1 max, 2 gem
  float p;
  std::int64_t items, channels, positions;
  std::int64_t item_stride, channel_stride, position_stride;
  float* rows;
  std::int64_t row_stride;
};

// Throws when the launch fails.
void fold_maps(const FoldMaps& work, void* stream);

}  // namespace pyfeat::cuda
