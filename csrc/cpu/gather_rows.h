// Rows from anywhere in memory, one after the other into one array.
#pragma once

#include "item.h"
#include "kernels.h"

namespace pyfeat {

// The kernels read `count` rows. The `following` addresses after them are those of rows that a
// later call will ask for: they are fetched into the cache, so that the next call need not wait.
struct PickedRows {
  const std::uint8_t* const* rows;
  std::ptrdiff_t count;
  std::ptrdiff_t following;
  std::ptrdiff_t bytes;  // of one row
};

// out[i] = rows[i], byte for byte
PYFEAT_DECLARE(void, copy_rows, (const PickedRows& from, std::uint8_t* out))

// out[i][j] = scales[i] * rows[i][j] as float32, j < d; null scales: as they are
PYFEAT_DECLARE(void, widen_rows,
               (const PickedRows& from, Item item, std::ptrdiff_t d, const float* scales,
                float* out))

}  // namespace pyfeat
