// Which of many segments may hold a key, in memory: one look into it instead of one into each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "format.h"

namespace pyfeat::store {

// Segments have numbers from 1 to kMostSegments. Some six bytes a key. Const methods may be called
// from any thread, while no other is.
class KeyMap {
 public:
  static constexpr std::size_t kMostSegments = 0xFFFF;

  // With room for `n` keys.
  explicit KeyMap(std::size_t n);

  // Adds the keys of a segment, in ascending order: they go into the map in the order it lies in
  // memory. False when there is no room for them, or the keys are no hashes and crowd together; the
  // map is then of no more use.
  bool add(const std::uint8_t* keys, std::size_t n, std::uint16_t segment);
  // Calls take(segment) for each segment that may hold a key, in the order they were added. None
  // that holds it is left out; one that does not comes about once in some thousand keys.
  template <typename Take>
  void candidates(const Key& key, const Take& take) const {
    const std::uint32_t mark = mark_of(key);
    for (std::size_t b = bucket_of(key);; b = b + 1 == buckets_ ? 0 : b + 1) {
      const Slot* slots = slots_.get() + b * kSlots;
      for (std::size_t i = 0; i < kSlots; ++i) {
        if (slots[i] == 0) return;
        if (slots[i] >> 16 == mark) take(static_cast<std::uint16_t>(slots[i] & 0xFFFF));
      }
    }
  }
  void expect(const Key& key) const { __builtin_prefetch(slots_.get() + bucket_of(key) * kSlots); }

 private:
  // Sixteen bits of the key above the number of the segment; 0 where there is none.
  using Slot = std::uint32_t;
  static constexpr std::size_t kSlots = 16;  // of a bucket: a line of the cache

  struct Free {
    void operator()(Slot* p) const { std::free(p); }
  };

  std::size_t bucket_of(const Key& key) const {
    return static_cast<std::size_t>((static_cast<unsigned __int128>(key.high) * buckets_) >> 64);
  }
  static std::uint32_t mark_of(const Key& key) { return key.low & 0xFFFF; }

  std::size_t buckets_;
  std::size_t room_;
  std::unique_ptr<Slot[], Free> slots_;  // filled from the front of a bucket, then in the next one
};

}  // namespace pyfeat::store
