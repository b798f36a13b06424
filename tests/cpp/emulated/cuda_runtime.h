// CUDA's words on a CPU: the kernels of csrc/cuda run here one block after another, so that a
// machine without a GPU can compare them with the reference.
//
// The threads of a block are coroutines that take turns at barriers and shuffles; a barrier that
// some threads miss is an error. Between two barriers the threads run in the order of their
// numbers, or backwards in every second block: what depends on that order gives wrong results.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // there is one block at a time
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorNoDevice = 100 };
using cudaStream_t = struct Stream*;

inline dim3 gridDim, blockIdx, threadIdx;

namespace emulated {

enum class At { running, barrier, shuffle, end };
constexpr int kStack = 1 << 16, kWarp = 32;

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  At at = At::running;
  int shuffles = 0;
  std::uint64_t given[2] = {};  // to this shuffle and the one before
};

inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline const std::function<void()>* kernel;
inline cudaError_t error = cudaSuccess;

inline void stop_at(At where) {
  Thread& own = threads[threadIdx.x];
  own.at = where;
  swapcontext(&own.context, &scheduler);
}

inline void begin() {
  (*kernel)();
  threads[threadIdx.x].at = At::end;  // uc_link goes back to the scheduler
}

inline void run_until_stopped(unsigned number) {
  threadIdx.x = number;
  threads[number].at = At::running;
  swapcontext(&scheduler, &threads[number].context);
}

inline bool all_at(At where, std::size_t first, std::size_t last) {
  for (std::size_t t = first; t < last; ++t)
    if (threads[t].at != where) return false;
  return true;
}

// Warps whose threads are all at a shuffle go on; at a barrier those that ended are not waited for.
inline std::vector<unsigned> able() {
  std::vector<unsigned> found;
  bool barrier = true;
  for (unsigned w = 0; w < threads.size(); w += kWarp) {
    if (all_at(At::shuffle, w, w + kWarp))
      for (unsigned t = w; t < w + kWarp; ++t) found.push_back(t);
  }
  for (const Thread& t : threads) barrier = barrier && (t.at == At::barrier || t.at == At::end);
  for (unsigned t = 0; barrier && t < threads.size(); ++t)
    if (threads[t].at == At::barrier) found.push_back(t);
  return found;
}

inline void run_block(bool backwards) {
  for (unsigned t = 0; t < threads.size(); ++t) {
    Thread& one = threads[t];
    getcontext(&one.context);
    one.context.uc_stack.ss_sp = one.stack.data();
    one.context.uc_stack.ss_size = one.stack.size();
    one.context.uc_link = &scheduler;
    makecontext(&one.context, begin, 0);
  }
  std::vector<unsigned> next(threads.size());
  for (unsigned t = 0; t < next.size(); ++t) next[t] = t;
  for (; !next.empty(); next = able()) {
    if (backwards) std::reverse(next.begin(), next.end());
    for (const unsigned t : next) run_until_stopped(t);
  }
  if (!all_at(At::end, 0, threads.size()))
    throw std::logic_error("every thread must come to a barrier or shuffle, got some that did not");
}

// What the source says as kernel<<<grid, count, 0, stream>>>(...).
inline void launch(dim3 grid, unsigned count, const std::function<void()>& body) {
  const bool good = grid.x && grid.y && grid.z && grid.x < 1u << 31 && grid.y < 65536 &&
                    grid.z < 65536 && count && count <= 1024 && count % kWarp == 0;
  if (!good) {
    error = cudaErrorInvalidConfiguration;
    return;
  }
  threads = std::vector<Thread>(count);
  kernel = &body;
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        run_block((x + y + z) % 2);
      }
}

}  // namespace emulated

inline void __syncthreads() { emulated::stop_at(emulated::At::barrier); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  auto& own = emulated::threads[threadIdx.x];
  const int turn = own.shuffles++ % 2;
  std::memcpy(&own.given[turn], &value, sizeof(T));
  emulated::stop_at(emulated::At::shuffle);
  std::memcpy(&value, &emulated::threads[threadIdx.x ^ lanes].given[turn], sizeof(T));
  return value;
}

template <typename T>
T __ldg(const T* p) {
  return *p;
}
using std::max;
using std::min;
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float x) {
  if (x != x) return 0;
  return static_cast<int>(std::nearbyint(std::clamp(x, -2147483648.0f, 2147483520.0f)));
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline cudaError_t cudaGetLastError() { return std::exchange(emulated::error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no device" : "invalid configuration argument";
}
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 12000, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 0, cudaErrorNoDevice; }
