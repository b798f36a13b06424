#include "key_map.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace pyfeat::store {
namespace {

constexpr std::size_t kHugePage = 2 << 20;
// Of a hundred slots so many are used at most: then hardly a key needs a third bucket.
constexpr std::size_t kFullPercent = 80;
constexpr std::size_t kMostBuckets = 64;  // that a key may be away from its own

}  // namespace

KeyMap::KeyMap(std::size_t n) : buckets_(n * 100 / (kFullPercent * kSlots) + 1), room_(n) {
  // Large pages: each look goes to another place, and would need another small one.
  const std::size_t bytes = buckets_ * kSlots * sizeof(Slot);
  const std::size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* p =
      std::aligned_alloc(bytes < kHugePage ? 64 : kHugePage, bytes < kHugePage ? bytes : whole);
  if (p == nullptr) throw std::bad_alloc();
  if (bytes >= kHugePage) ::madvise(p, whole, MADV_HUGEPAGE);
  slots_.reset(static_cast<Slot*>(p));
  std::fill(slots_.get(), slots_.get() + buckets_ * kSlots, 0);
}

bool KeyMap::add(const std::uint8_t* keys, std::size_t n, std::uint16_t segment) {
  if (n > room_) return false;
  room_ -= n;
  for (std::size_t k = 0; k < n; ++k) {
    const Key key = Key::load(keys + k * kKeyBytes);
    std::size_t b = bucket_of(key), i = 0;
    for (std::size_t tried = 0;; b = b + 1 == buckets_ ? 0 : b + 1) {
      const Slot* slots = slots_.get() + b * kSlots;
      for (i = 0; i < kSlots && slots[i] != 0; ++i) {
      }
      if (i < kSlots) break;
      if (++tried > kMostBuckets) return false;
    }
    slots_[b * kSlots + i] = mark_of(key) << 16 | segment;
  }
  return true;
}

}  // namespace pyfeat::store
