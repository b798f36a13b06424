// Numbers of records by key, in memory: what a tail knows of its own records.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "format.h"

namespace pyfeat::store {

// Numbers go up from 0, one for each `add` or `skip`; of several of one key the newest counts. Some
// 30 bytes a key. Not safe for several threads by itself.
class KeyTable {
 public:
  // Gives the next `n` numbers to keys that lie `stride` bytes apart.
  void add(const std::uint8_t* keys, std::size_t n, std::size_t stride = kKeyBytes);
  // Gives the next number to nothing: a record that is damaged.
  void skip() { keys_.push_back({0, 0}); }
  // numbers[i] = newest number of keys[i], or -1.
  void find(const std::uint8_t* keys, std::size_t n, std::int64_t* numbers) const;
  // Numbers that are the newest of their key, ascending.
  std::vector<std::int64_t> newest() const;
  const Key& key(std::int64_t number) const { return keys_[static_cast<std::size_t>(number)]; }
  // How many numbers were given.
  std::size_t size() const { return keys_.size(); }

 private:
  // The number plus one, below the leading bits of the key's second half; 0 where there is none.
  using Slot = std::uint64_t;

  // Keys need not be hashes to lie apart.
  std::size_t first_slot(const Key& key) const {
    return ((key.high ^ key.low) * 0x9E3779B97F4A7C15) >> shift_;
  }
  // The slot of a key: the one that holds it, or the free one where it belongs.
  std::size_t slot_of(const Key& key) const;
  void grow(std::size_t numbers);

  std::vector<Key> keys_;    // by number
  std::vector<Slot> slots_;  // a power of two of them, probed one after the other
  int shift_ = 64;           // 64 less the power
  std::size_t used_ = 0;
};

}  // namespace pyfeat::store
