// Every number is read once, in 16-byte loads where alignment lets them be.
//
// fold_adjacent: channels adjacent (NHWC, tokens): a lane holds 8 channels and the warps of a block
// share out the positions. fold_staged: positions adjacent and channels without gaps (NCHW): a
// block takes a stretch of whole channels to shared memory as it lies, and folds it there.
// fold_apart: whatever else: one warp a channel.
#include "common.cuh"
#include "numbers.cuh"
#include "pool.h"

namespace pyfeat::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kStaged = 8192;  // floats of shared memory
constexpr unsigned kAll = 0xFFFFFFFF;
constexpr float kFloor = 1e-6f;
constexpr float kInfinity = __builtin_huge_valf();

template <int method>
struct Fold {
  float p;
  __device__ float start() const { return method == 1 ? -kInfinity : 0.0f; }
  __device__ float merge(float a, float b) const {
    if (method == 1) return b > a || b != b ? b : a;  // NaN wins
    return a + b;
  }
  __device__ float step(float a, float v) const {
    if (method != 2) return merge(a, v);
    v = v < kFloor ? kFloor : v;
    return a + (p == 3.0f ? v * v * v : powf(v, p));
  }
};

// One channel again, in float64, where the range of float32 was left: rare.
template <int method, typename T>
__device__ float careful(const FoldMaps& work, const T* x, float p) {
  const double n = static_cast<double>(work.positions);
  double most = kFloor, sum = 0.0;
  if (method == 2) {
    for (std::int64_t l = 0; l < work.positions; ++l) {
      const double v = to_float(x[l * work.position_stride]);
      if (v != v) return static_cast<float>(v);
      most = v > most ? v : most;
    }
    if (most > 3.5e38) return kInfinity;
  }
  for (std::int64_t l = 0; l < work.positions; ++l) {
    const double v = to_float(x[l * work.position_stride]);
    sum += method == 2 ? pow((v < kFloor ? kFloor : v) / most, static_cast<double>(p)) : v;
  }
  return static_cast<float>(method == 2 ? most * pow(sum / n, 1.0 / static_cast<double>(p))
                                        : sum / n);
}

// The folded channel c of an item to its number in the row.
template <int method, typename T>
__device__ float finished(const FoldMaps& work, const T* item, std::int64_t c, float folded) {
  if (method == 1) return folded;
  const float mean = folded / static_cast<float>(work.positions);
  const bool good = fabsf(mean) < kInfinity && (method == 0 || mean >= 1e-33f);
  if (!good) return careful<method>(work, item + c * work.channel_stride, work.p);
  if (method == 0) return mean;
  if (work.p == 3.0f) return cbrtf(mean);
  return static_cast<float>(pow(static_cast<double>(mean), 1.0 / static_cast<double>(work.p)));
}

template <int method, bool kWide, typename T>
__global__ void __launch_bounds__(kThreads) fold_adjacent(FoldMaps work) {
  constexpr int kEach = kWide ? 8 : 1;
  __shared__ float parts[kWarps][32 * kEach];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Fold<method> fold{work.p};
  const T* item = static_cast<const T*>(work.x) + blockIdx.x * work.item_stride;
  const std::int64_t c = (static_cast<std::int64_t>(blockIdx.y) * 32 + lane) * kEach;
  float sums[kEach], v[8];
#pragma unroll
  for (int k = 0; k < kEach; ++k) sums[k] = fold.start();
  if (c < work.channels) {
#pragma unroll 4
    for (std::int64_t l = warp; l < work.positions; l += kWarps) {
      const T* at = item + l * work.position_stride + c;
      if (kWide)
        load8(at, v);
      else
        v[0] = to_float(*at);
#pragma unroll
      for (int k = 0; k < kEach; ++k) sums[k] = fold.step(sums[k], v[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) parts[warp][k * 32 + lane] = sums[k];
  __syncthreads();
  for (int at = threadIdx.x; at < 32 * kEach; at += kThreads) {
    const std::int64_t channel =
        (static_cast<std::int64_t>(blockIdx.y) * 32 + at % 32) * kEach + at / 32;
    if (channel >= work.channels) continue;
    float sum = parts[0][at];
    for (int w = 1; w < kWarps; ++w) sum = fold.merge(sum, parts[w][at]);
    work.rows[blockIdx.x * work.row_stride + channel] = finished<method>(work, item, channel, sum);
  }
}

// `group` channels a block, `lanes` threads (a power of two up to 32) a channel.
template <int method, bool kWide, typename T>
__global__ void __launch_bounds__(kThreads) fold_staged(FoldMaps work, int group, int lanes) {
  __shared__ __align__(16) float staged[kStaged];
  const Fold<method> fold{work.p};
  const T* item = static_cast<const T*>(work.x) + blockIdx.x * work.item_stride;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * group;
  const int positions = static_cast<int>(work.positions);
  const int channels =
      static_cast<int>(work.channels - first < group ? work.channels - first : group);
  const int numbers = channels * positions;
  const T* x = item + first * positions;
  int done = 0;
  if (kWide) {
    done = numbers / 8 * 8;
#pragma unroll 4
    for (int i = threadIdx.x * 8; i < done; i += kThreads * 8) {
      float v[8];
      load8(x + i, v);
      store8(v, staged + i);
    }
  }
  for (int i = done + threadIdx.x; i < numbers; i += kThreads) staged[i] = to_float(x[i]);
  __syncthreads();
  // All threads stay for the shuffles; those without a channel fold nothing.
  const int channel = threadIdx.x / lanes, lane = threadIdx.x % lanes;
  float sum = fold.start();
  if (channel < channels) {
    // Rows of an even length would share banks: each channel starts at another position.
    const int turn = positions % 2 ? 0 : channel % positions;
    for (int l = lane; l < positions; l += lanes) {
      const int at = l + turn < positions ? l + turn : l + turn - positions;
      sum = fold.step(sum, staged[channel * positions + at]);
    }
  }
  for (int other = lanes / 2; other; other /= 2)
    sum = fold.merge(sum, __shfl_xor_sync(kAll, sum, other));
  if (channel < channels && lane == 0)
    work.rows[blockIdx.x * work.row_stride + first + channel] =
        finished<method>(work, item, first + channel, sum);
}

template <int method, typename T>
__global__ void __launch_bounds__(kThreads) fold_apart(FoldMaps work) {
  const Fold<method> fold{work.p};
  const T* item = static_cast<const T*>(work.x) + blockIdx.x * work.item_stride;
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * kWarps + threadIdx.x / 32;
  if (c >= work.channels) return;  // the whole warp
  const T* x = item + c * work.channel_stride;
  float sum = fold.start();
#pragma unroll 4
  for (std::int64_t l = threadIdx.x % 32; l < work.positions; l += 32)
    sum = fold.step(sum, to_float(x[l * work.position_stride]));
  for (int other = 16; other; other /= 2) sum = fold.merge(sum, __shfl_xor_sync(kAll, sum, other));
  if (threadIdx.x % 32 == 0)
    work.rows[blockIdx.x * work.row_stride + c] = finished<method>(work, item, c, sum);
}

// Items first: the second side of a grid ends at 65535.
dim3 grid(const FoldMaps& work, std::int64_t channels_of_block) {
  return dim3(static_cast<unsigned>(work.items),
              static_cast<unsigned>(divide_up(work.channels, channels_of_block)));
}

template <int method, typename T>
void launch(const FoldMaps& work, cudaStream_t stream) {
  const std::int64_t size = sizeof(T);
  const bool items_aligned = aligned(work.x, work.item_stride * size);
  if (work.channel_stride == 1) {
    if (items_aligned && work.channels % 8 == 0 && work.position_stride * size % 16 == 0)
      fold_adjacent<method, true, T><<<grid(work, 256), kThreads, 0, stream>>>(work);
    else
      fold_adjacent<method, false, T><<<grid(work, 32), kThreads, 0, stream>>>(work);
  } else if (work.channel_stride == work.positions && work.positions <= kStaged) {
    std::int64_t group = kStaged / work.positions;
    if (group > kThreads) group = kThreads;
    if (group > 8) group = group / 8 * 8;
    int lanes = 1;
    while (lanes < 32 && 2 * lanes * group <= kThreads) lanes *= 2;
    const int channels = static_cast<int>(group);
    if (items_aligned && group * work.positions * size % 16 == 0)
      fold_staged<method, true, T>
          <<<grid(work, group), kThreads, 0, stream>>>(work, channels, lanes);
    else
      fold_staged<method, false, T>
          <<<grid(work, group), kThreads, 0, stream>>>(work, channels, lanes);
  } else {
    fold_apart<method, T><<<grid(work, kWarps), kThreads, 0, stream>>>(work);
  }
  check_launch("fold_maps");
}

template <typename T>
void launch_method(const FoldMaps& work, cudaStream_t stream) {
  if (work.method == 0) return launch<0, T>(work, stream);
  if (work.method == 1) return launch<1, T>(work, stream);
  launch<2, T>(work, stream);
}

}  // namespace

void fold_maps(const FoldMaps& work, void* stream) {
  if (work.items == 0 || work.channels == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  if (work.item == 0) return launch_method<float>(work, on);
  if (work.item == 1) return launch_method<__half>(work, on);
  launch_method<__nv_bfloat16>(work, on);
}

}  // namespace pyfeat::cuda
