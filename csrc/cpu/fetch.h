// Memory asked for before it is read.
#pragma once

#include "kernels.h"

namespace pyfeat::PYFEAT_ISA {

// Asks for n adjacent numbers, which may lie behind the end of all, and reads none. Channels and
// positions of most maps are shorter than what the hardware needs to fetch ahead by itself.
template <typename Number>
static inline void fetch(const Number* p, std::ptrdiff_t n) {
  const auto* bytes = reinterpret_cast<const char*>(p);
  for (std::ptrdiff_t at = 0; at < n * static_cast<std::ptrdiff_t>(sizeof *p); at += 64)
    __builtin_prefetch(bytes + at, 0, 2);
}

}  // namespace pyfeat::PYFEAT_ISA
