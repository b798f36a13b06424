// Loops that do nothing but what a limit of the machine is about: what kernels are measured
// against.
#pragma once

#include "kernels.h"

namespace pyfeat {

// Multiplies and adds in registers; returns the FLOP done. With bfloat16 pairs where the
// instruction set has them, else in float32. `seed` and `out` keep the work from being left out.
PYFEAT_DECLARE(double, multiply_add_loop, (std::ptrdiff_t turns, bool bf16, float seed, float* out))

// Reads n numbers, a multiple of 64, and writes one.
PYFEAT_DECLARE(void, read_loop, (const float* x, std::ptrdiff_t n, float* out))

}  // namespace pyfeat
