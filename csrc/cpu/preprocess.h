// What the kernel of `preprocess` is told: weights, rows and room.
#pragma once

#include "kernels.h"

namespace pyfeat {

// One direction of a resize: output i is the sum over t < 2 * pairs of weight(i, t) *
// source[starts[i] + t]. A weight is an integer in units of 2^-22, cut into coarse * 2^11 + fine, 0
// <= fine < 2^11, so that each part fits the 16-bit multiply-add. Taps 2p and 2p + 1 share an int32
// (low half, high half): weights[i][p] = {coarse, fine}. A tap that is there only to complete a
// pair has weight 0.
struct Taps {
  int count;  // outputs; both arrays are padded to a multiple of 4 outputs
  int pairs;
  const std::int32_t* starts;
  const std::int32_t* weights;  // (count, pairs, 2)
};

// Five neighbouring outputs at once, 15 of the 16 words of a vector: word 5 c + k is channel c of
// output k. From the 64 bytes at offsets[group] of a row, `words` (groups, quads, 4, 64) picks four
// taps for each word (64 indices) and weighs them: in three signed bytes each, w = high * 2^16 +
// middle * 2^8 + low. `offsets` is null where the windows of five outputs do not fit in 64 bytes.
struct TapGroups {
  int quads;
  const std::int32_t* offsets;
  const std::uint8_t* words;
};

// Whether the kernel of this instruction set would use groups.
PYFEAT_DECLARE(bool, preprocess_takes_groups, ())

// Rows of interleaved RGB bytes. A kernel may read up to 3 * (2 * pairs) + 10 bytes from the start
// of a tap window, and the 64 of a group: rows below `in_place` allow it where they lie, the others
// lie in `tail`, padded.
struct PixelRows {
  const std::uint8_t* image;
  std::ptrdiff_t stride;
  int count;
  int in_place;
  const std::uint8_t* tail;  // row r is tail + (r - in_place) * tail_stride
  std::ptrdiff_t tail_stride;
};

// Between the passes a row is three planes of plane_bytes(crop) bytes, with room for writing 8
// bytes at any pixel. The scratch of `preprocess`
// is scratch_rows(rows) such rows and one more; those from `rows` on are zero.
static constexpr std::size_t plane_bytes(int crop) {
  return (static_cast<std::size_t>(crop) + 7 + 63) / 64 * 64;
}
static constexpr std::size_t scratch_rows(int rows) {
  return (static_cast<std::size_t>(rows) + 4) / 4 * 4;
}

// Where the result goes: out is (3, side, side) of item_bytes (1, 2 or 4) each, and table (3, 256)
// of the same. Rows `top` on and columns `left` on are written, the others left as they are.
struct Slot {
  void* out;
  int side;
  int top;
  int left;
  const void* table;
  int item_bytes;
};

// out[c][top + y][left + x] = table[c][v], v the byte that resizing across, rounding, resizing down
// and rounding gives, y < down.count, x < across.count.
PYFEAT_DECLARE(void, preprocess,
               (const PixelRows& rows, const Taps& across, const TapGroups& groups,
                const Taps& down, std::uint8_t* scratch, const Slot& slot))

}  // namespace pyfeat
