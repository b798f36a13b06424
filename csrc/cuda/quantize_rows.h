// Rows to another type on a GPU, normalised before where wanted.
#pragma once

#include <cstdint>

namespace pyfeat::cuda {

// Types as in csrc/cpu/item.h: 0 float32, 1 float16, 2 bfloat16, 3 int8.
struct StoreRows {
  const void* rows;
  int from;
  std::int64_t stride;  // from row to row, in numbers
  std::int64_t n, d;
  const float* scales;  // of int8 rows; else null
  bool l2;
  int to;
  void* out;     // (n, d)
  float* codes;  // (n,): scales of int8 out; else null
};

// Throws when the launch fails.
void store_rows(const StoreRows& work, void* stream);

}  // namespace pyfeat::cuda
