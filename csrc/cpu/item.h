// What the numbers of stored rows are. pyfeat/ops/_check.py has the same numbering.
#pragma once

#include <cstddef>

namespace pyfeat {

enum class Item { kFloat32, kFloat16, kBFloat16, kInt8 };

static inline std::ptrdiff_t bytes_of(Item item) {
  return item == Item::kFloat32 ? 4 : item == Item::kInt8 ? 1 : 2;
}

}  // namespace pyfeat
