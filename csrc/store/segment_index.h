// Look-ups in many segments at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "key_map.h"
#include "segment.h"

namespace pyfeat::store {

// Segments, newest first. Asked often enough, it makes a map of their keys in memory, so that a
// look-up costs the same however many segments there are. All methods may be called from any
// thread.
class SegmentIndex {
 public:
  explicit SegmentIndex(std::vector<std::shared_ptr<const Segment>> segments);

  // source[i] = number of the first segment that holds keys[i], row[i] = its row there; both -1
  // when none does.
  void locate(const std::uint8_t* keys, std::size_t n, std::int64_t* source, std::int64_t* row,
              std::size_t threads);

  // Every key once, in the order the rows were written: oldest segment first.
  std::vector<std::uint8_t> keys(std::size_t threads) const;
  std::size_t count_keys(std::size_t threads) const;

 private:
  // By segment and place among its keys: 1 where an older segment holds the key, too, or its entry
  // in a damaged `order` names no row.
  std::vector<std::vector<std::uint8_t>> left_out(std::size_t threads) const;
  // The map, made now if `n` more look-ups pay for it; null if there is none.
  const KeyMap* map_for(std::size_t n);
  std::unique_ptr<KeyMap> make_map() const;

  std::vector<std::shared_ptr<const Segment>> segments_;
  std::size_t keys_ = 0;
  std::atomic<std::size_t> asked_{0};
  std::atomic<const KeyMap*> map_{nullptr};
  std::unique_ptr<KeyMap> owned_;
  bool tried_ = false;
  std::mutex making_;
};

}  // namespace pyfeat::store
