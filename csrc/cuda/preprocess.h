// Resize of images of any sizes on the GPU, in exact integers, two launches for all of them.
#pragma once

#include <cstdint>

namespace pyfeat::cuda {

// One image. `image` is the first byte that is read: `rows` rows of interleaved RGB bytes, `stride`
// apart. Across, output x of `columns` is the sum over t < taps_x of weights_x[x, t] *
// pixel[starts_x[x] + t] in units of 2^-22; down likewise, over `lines` outputs. Between the passes
// the bytes lie at `narrow`, (rows, 3, pitch), 16-byte aligned. Value (c, y, x) goes to item
// (c * side + y) * side + x of `out`, which begins inside a slot where there is background.
// All members have 8 bytes: Python writes them as a row of int64.
struct PreprocessJob {
  std::int64_t image, stride, rows;
  std::int64_t starts_x, weights_x, taps_x, columns;
  std::int64_t starts_y, weights_y, taps_y, lines;
  std::int64_t narrow, pitch, out;
};

// `jobs` (n on the device) with at most `rows`, `columns` and `lines` each, pitch a multiple of 16;
// table (3, 256) of item_bytes (1, 2 or 4), as `out` is.
void preprocess(const PreprocessJob* jobs, int n, int rows, int columns, int lines, int side,
                const void* table, int item_bytes, void* stream);

}  // namespace pyfeat::cuda
