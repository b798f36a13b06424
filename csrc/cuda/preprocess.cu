// Across: a thread makes one pixel of one row. Down: a thread makes 16 neighbouring bytes of one
// channel and line, from 16-byte reads of the rows between, and looks their values up.
//
// Sums run in int32: no partial sum of weights and bytes leaves it, for the positive weights of an
// output sum to less than 1.25 * 2^22.
#include "common.cuh"
#include "preprocess.h"

namespace pyfeat::cuda {
namespace {

constexpr int kFractionBits = 22;
constexpr int kHalf = 1 << (kFractionBits - 1);
constexpr int kThreads = 128;
constexpr int kBytes = 16;     // of one read down
constexpr int kMostY = 65535;  // blocks in y and z

__device__ inline int to_byte(int sum) { return min(max(sum >> kFractionBits, 0), 255); }

template <typename T>
__device__ inline const T* at(std::int64_t address) {
  return reinterpret_cast<const T*>(address);
}

__global__ void preprocess_across(const PreprocessJob* jobs, int job) {
  const PreprocessJob j = jobs[job + blockIdx.z];
  const int x = blockIdx.x * kThreads + threadIdx.x;
  if (x >= j.columns) return;
  const int* weights = at<int>(j.weights_x) + x * j.taps_x;
  const std::int64_t start = at<int>(j.starts_x)[x];
  for (std::int64_t r = blockIdx.y; r < j.rows; r += gridDim.y) {
    const std::uint8_t* pixel = at<std::uint8_t>(j.image) + r * j.stride + start * 3;
    int red = kHalf, green = kHalf, blue = kHalf;
    for (int t = 0; t < j.taps_x; ++t, pixel += 3) {
      const int w = __ldg(weights + t);
      red += w * __ldg(pixel);
      green += w * __ldg(pixel + 1);
      blue += w * __ldg(pixel + 2);
    }
    std::uint8_t* to = reinterpret_cast<std::uint8_t*>(j.narrow) + r * 3 * j.pitch + x;
    to[0] = static_cast<std::uint8_t>(to_byte(red));
    to[j.pitch] = static_cast<std::uint8_t>(to_byte(green));
    to[2 * j.pitch] = static_cast<std::uint8_t>(to_byte(blue));
  }
}

// Adds w times each of the four bytes of a word.
__device__ inline void add_bytes(int (&sums)[kBytes], int first, int w, unsigned word) {
#pragma unroll
  for (int k = 0; k < 4; ++k) sums[first + k] += w * static_cast<int>((word >> (8 * k)) & 0xffu);
}

template <typename Item>
__global__ void preprocess_down(const PreprocessJob* jobs, int job, int side, const Item* table) {
  const PreprocessJob j = jobs[job + blockIdx.z];
  const int chunks = static_cast<int>(j.pitch / kBytes);
  const int item = blockIdx.x * kThreads + threadIdx.x;  // chunk of a channel
  if (item >= 3 * chunks) return;
  const int c = item / chunks, x = item % chunks * kBytes;
  for (std::int64_t y = blockIdx.y; y < j.lines; y += gridDim.y) {
    const int* weights = at<int>(j.weights_y) + y * j.taps_y;
    const std::uint8_t* row =
        at<std::uint8_t>(j.narrow) + (at<int>(j.starts_y)[y] * 3ll + c) * j.pitch + x;
    int sums[kBytes];
#pragma unroll
    for (int k = 0; k < kBytes; ++k) sums[k] = kHalf;
    for (int t = 0; t < j.taps_y; ++t, row += 3 * j.pitch) {
      const int w = __ldg(weights + t);
      const uint4 bytes = __ldg(reinterpret_cast<const uint4*>(row));
      add_bytes(sums, 0, w, bytes.x);
      add_bytes(sums, 4, w, bytes.y);
      add_bytes(sums, 8, w, bytes.z);
      add_bytes(sums, 12, w, bytes.w);
    }
    Item* to = reinterpret_cast<Item*>(j.out) + (c * static_cast<std::int64_t>(side) + y) * side;
#pragma unroll
    for (int k = 0; k < kBytes; ++k)
      if (x + k < j.columns) to[x + k] = __ldg(table + c * 256 + to_byte(sums[k]));
  }
}

template <typename Item>
void down(dim3 grid, cudaStream_t stream, const PreprocessJob* jobs, int job, int side,
          const void* table) {
  preprocess_down<Item>
      <<<grid, kThreads, 0, stream>>>(jobs, job, side, static_cast<const Item*>(table));
  check_launch("preprocess_down");
}

}  // namespace

void preprocess(const PreprocessJob* jobs, int n, int rows, int columns, int lines, int side,
                const void* table, int item_bytes, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const int chunks = 3 * divide_up(columns, kBytes);
  for (int job = 0; job < n; job += kMostY) {
    const unsigned depth = static_cast<unsigned>(n - job < kMostY ? n - job : kMostY);
    const dim3 wide(divide_up(columns, kThreads), rows < kMostY ? rows : kMostY, depth);
    const dim3 tall(divide_up(chunks, kThreads), lines < kMostY ? lines : kMostY, depth);
    preprocess_across<<<wide, kThreads, 0, on>>>(jobs, job);
    check_launch("preprocess_across");
    if (item_bytes == 4)
      down<std::uint32_t>(tall, on, jobs, job, side, table);
    else if (item_bytes == 2)
      down<std::uint16_t>(tall, on, jobs, job, side, table);
    else
      down<std::uint8_t>(tall, on, jobs, job, side, table);
  }
}

}  // namespace pyfeat::cuda
