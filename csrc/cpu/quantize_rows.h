// Rows of floats to what is stored, and back.
#pragma once

#include "item.h"
#include "kernels.h"

namespace pyfeat {

// `count` rows of d numbers, row i at item i * stride; out is compact. `scales` has a number for
// each row of int8 and is not touched otherwise. int8 is written by `quantize_rows` only, and read
// by `dequantize_rows` only.
PYFEAT_DECLARE(void, quantize_rows,
               (const void* rows, Item from, std::ptrdiff_t stride, std::ptrdiff_t count,
                std::ptrdiff_t d, Item to, void* out, float* scales))
PYFEAT_DECLARE(void, dequantize_rows,
               (const void* rows, Item from, std::ptrdiff_t stride, std::ptrdiff_t count,
                std::ptrdiff_t d, const float* scales, Item to, void* out))

}  // namespace pyfeat
