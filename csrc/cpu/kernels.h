// Kernels of every op, declared once and defined per instruction set.
//
// Arrays are row-major and compact; pointers may be unaligned and must not overlap unless said.
// Kernels start no threads, allocate nothing and use no standard-library template (an inline
// function compiled for AVX-512 could become the copy that the whole program calls).
#pragma once

#include <cstddef>
#include <cstdint>

#define PYFEAT_KERNELS

namespace pyfeat {

namespace generic {
PYFEAT_KERNELS
}
#ifdef PYFEAT_X86
namespace avx2 {
PYFEAT_KERNELS
}
namespace avx512 {
PYFEAT_KERNELS
}
#endif

}  // namespace pyfeat
