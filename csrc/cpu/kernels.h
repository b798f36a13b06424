// How a kernel is declared for every instruction set, and how the one in use is called.
//
// Arrays are row-major and compact; pointers may be unaligned and must not overlap unless said.
// Kernels start no threads, allocate nothing and use no standard-library template (an inline
// function compiled for AVX-512 could become the copy that the whole program calls).
#pragma once

#include <cstddef>
#include <cstdint>

// Inside `namespace pyfeat`: PYFEAT_DECLARE(void, pool, (const float* in, float* out))
#ifdef PYFEAT_X86
#define PYFEAT_DECLARE(result, name, arguments) \
  namespace generic {                           \
  result name arguments;                        \
  }                                             \
  namespace avx2 {                              \
  result name arguments;                        \
  }                                             \
  namespace avx512 {                            \
  result name arguments;                        \
  }                                             \
  namespace avx512bf16 {                        \
  result name arguments;                        \
  }
#else
#define PYFEAT_DECLARE(result, name, arguments) \
  namespace generic {                           \
  result name arguments;                        \
  }
#endif
