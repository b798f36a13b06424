// Keys of queries against a chunk of base rows: what `topk` screens with on a GPU.
#pragma once

#include <cstdint>

namespace pyfeat::cuda {

// key[q * m + i] = mul[i] * (query q . row i) + add[i] in float32, minus infinity where that is
// NaN. Queries are float32 (n, d), compact; the numbers of a row of the base are adjacent. Device
// addresses. item: 0 float32, 1 float16, 2 bfloat16, 3 int8.
struct KeysOf {
  const float* queries;
  const void* base;
  int item;
  long long row_stride;  // in items
  const float* mul;
  const float* add;
  float* keys;
  long long n, m, d;
};

// Queues the kernel on a stream. Throws std::runtime_error when it cannot be launched.
void topk_keys(const KeysOf& work, std::uintptr_t stream);

}  // namespace pyfeat::cuda
