#include "key_table.h"

#include <algorithm>

namespace pyfeat::store {
namespace {

constexpr int kNumberBits = 40;
constexpr std::uint64_t kNumberMask = (std::uint64_t{1} << kNumberBits) - 1;
constexpr std::size_t kFewestSlots = 1024;
constexpr std::size_t kKeysAtOnce = 16;  // whose slots are asked of memory side by side

// What of a key lies in its slot, so that the keys of others are rarely looked at.
std::uint64_t mark_of(const Key& key) { return key.low & ~kNumberMask; }

std::int64_t number_in(std::uint64_t slot) {
  return static_cast<std::int64_t>(slot & kNumberMask) - 1;
}

}  // namespace

std::size_t KeyTable::slot_of(const Key& key) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = first_slot(key);
  for (; slots_[at] != 0; at = (at + 1) & mask) {
    if ((slots_[at] & ~kNumberMask) == mark_of(key) && this->key(number_in(slots_[at])) == key)
      break;
  }
  return at;
}

void KeyTable::grow(std::size_t numbers) {
  std::size_t size = std::max(kFewestSlots, slots_.size());
  while (size < 2 * numbers) size *= 2;
  if (size == slots_.size()) return;
  std::vector<Slot> before(size, 0);
  before.swap(slots_);
  shift_ = 64 - __builtin_ctzll(size);
  for (const Slot slot : before)
    if (slot != 0) slots_[slot_of(key(number_in(slot)))] = slot;
}

void KeyTable::add(const std::uint8_t* keys, std::size_t n, std::size_t stride) {
  grow(used_ + n);
  for (std::size_t begin = 0; begin < n; begin += kKeysAtOnce) {
    const std::size_t end = std::min(n, begin + kKeysAtOnce);
    const std::size_t known = keys_.size();
    for (std::size_t i = begin; i < end; ++i) {
      keys_.push_back(Key::load(keys + i * stride));
      __builtin_prefetch(&slots_[first_slot(keys_.back())], 1);
    }
    for (std::size_t number = known; number < keys_.size(); ++number) {
      const std::size_t at = slot_of(keys_[number]);
      used_ += slots_[at] == 0;
      slots_[at] = mark_of(keys_[number]) | (number + 1);
    }
  }
}

void KeyTable::find(const std::uint8_t* keys, std::size_t n, std::int64_t* numbers) const {
  if (used_ == 0) {
    std::fill(numbers, numbers + n, -1);
    return;
  }
  for (std::size_t begin = 0; begin < n; begin += kKeysAtOnce) {
    const std::size_t end = std::min(n, begin + kKeysAtOnce);
    Key wanted[kKeysAtOnce];
    for (std::size_t i = begin; i < end; ++i) {
      wanted[i - begin] = Key::load(keys + i * kKeyBytes);
      __builtin_prefetch(&slots_[first_slot(wanted[i - begin])]);
    }
    for (std::size_t i = begin; i < end; ++i)
      numbers[i] = number_in(slots_[slot_of(wanted[i - begin])]);
  }
}

std::vector<std::int64_t> KeyTable::newest() const {
  std::vector<std::int64_t> numbers;
  numbers.reserve(used_);
  for (const Slot slot : slots_)
    if (slot != 0) numbers.push_back(number_in(slot));
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

}  // namespace pyfeat::store
