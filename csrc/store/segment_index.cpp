#include "segment_index.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "../parallel.h"

namespace pyfeat::store {
namespace {

constexpr std::size_t kKeysPerChunk = 2048;
constexpr double kKeysPerThread = 4096;
constexpr std::size_t kFewestSegments = 3;  // that a map is made for
// A key goes into the map in the time in which this many segments are asked for one.
constexpr std::size_t kAskedPerKey = 2;
constexpr std::size_t kKeysAtOnce = 32;  // whose buckets are asked of memory side by side

// Answers for a chunk of keys.
struct Chunk {
  const std::uint8_t* keys;
  std::size_t n;
  std::int64_t* source;
  std::int64_t* row;
};

// What is still to be found of a chunk, after the segments asked so far.
struct Open {
  explicit Open(const Chunk& c) : keys(c.keys, c.keys + c.n * kKeyBytes), places(c.n), found(c.n) {
    std::iota(places.begin(), places.end(), 0);
  }
  void drop_found(const Chunk& c, std::size_t segment) {
    std::size_t left = 0;
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (found[i] >= 0) {
        c.source[places[i]] = static_cast<std::int64_t>(segment);
        c.row[places[i]] = found[i];
        continue;
      }
      std::memmove(keys.data() + left * kKeyBytes, keys.data() + i * kKeyBytes, kKeyBytes);
      places[left++] = places[i];
    }
    places.resize(left);
  }
  std::vector<std::uint8_t> keys;
  std::vector<std::size_t> places;
  std::vector<std::int64_t> found;
};

using Held = std::vector<std::shared_ptr<const Segment>>;

void ask_all(const Held& segments, const Chunk& c) {
  Open open(c);
  for (std::size_t s = 0; s < segments.size() && !open.places.empty(); ++s) {
    segments[s]->find(open.keys.data(), open.places.size(), open.found.data());
    open.drop_found(c, s);
  }
}

// A key of a chunk, and a segment that may hold it.
struct Candidate {
  std::uint32_t segment;
  std::uint32_t place;
};

std::vector<Candidate> candidates(const KeyMap& map, const Chunk& c) {
  std::vector<Candidate> found;
  found.reserve(c.n + c.n / 8);
  Key wanted[kKeysAtOnce];
  for (std::size_t begin = 0; begin < c.n; begin += kKeysAtOnce) {
    const std::size_t m = std::min(kKeysAtOnce, c.n - begin);
    for (std::size_t i = 0; i < m; ++i) {
      wanted[i] = Key::load(c.keys + (begin + i) * kKeyBytes);
      map.expect(wanted[i]);
    }
    for (std::size_t i = 0; i < m; ++i)
      map.candidates(wanted[i], [&](std::uint16_t number) {
        found.push_back({number - 1u, static_cast<std::uint32_t>(begin + i)});
      });
  }
  return found;
}

// The same, those of one segment together, newest segment first.
std::vector<Candidate> by_segment(const std::vector<Candidate>& mixed, std::size_t segments) {
  std::vector<std::size_t> begin(segments + 1, 0);
  for (const Candidate& c : mixed) ++begin[c.segment + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  std::vector<Candidate> sorted(mixed.size());
  for (const Candidate& c : mixed) sorted[begin[c.segment]++] = c;
  return sorted;
}

void ask_candidates(const Held& segments, const KeyMap& map, const Chunk& c) {
  const std::vector<Candidate> all = by_segment(candidates(map, c), segments.size());
  std::vector<std::uint8_t> keys(all.size() * kKeyBytes);
  std::vector<std::size_t> places(all.size());
  std::vector<std::int64_t> found(all.size());
  for (std::size_t begin = 0, end; begin < all.size(); begin = end) {
    const std::uint32_t segment = all[begin].segment;
    std::size_t m = 0;
    for (end = begin; end < all.size() && all[end].segment == segment; ++end) {
      const std::size_t place = all[end].place;
      if (c.source[place] >= 0) continue;  // a newer segment holds it, too
      std::memcpy(keys.data() + m * kKeyBytes, c.keys + place * kKeyBytes, kKeyBytes);
      places[m++] = place;
    }
    segments[segment]->find(keys.data(), m, found.data());
    for (std::size_t i = 0; i < m; ++i) {
      if (found[i] < 0) continue;
      c.source[places[i]] = segment;
      c.row[places[i]] = found[i];
    }
  }
}

}  // namespace

SegmentIndex::SegmentIndex(Held segments) : segments_(std::move(segments)) {
  for (const auto& segment : segments_) keys_ += segment->size();
}

std::unique_ptr<KeyMap> SegmentIndex::make_map() const {
  auto map = std::make_unique<KeyMap>(keys_);
  for (std::size_t s = 0; s < segments_.size(); ++s) {
    const auto number = static_cast<std::uint16_t>(s + 1);
    if (!map->add(segments_[s]->sorted_keys(), segments_[s]->size(), number)) return nullptr;
  }
  return map;
}

const KeyMap* SegmentIndex::map_for(std::size_t n) {
  const std::size_t s = segments_.size();
  if (s < kFewestSegments || s > KeyMap::kMostSegments) return nullptr;
  const std::size_t asked = asked_.fetch_add(n) + n;
  const KeyMap* map = map_.load(std::memory_order_acquire);
  if (map != nullptr || asked < keys_ * kAskedPerKey / s) return map;
  const std::lock_guard<std::mutex> guard(making_);
  if (!tried_) {
    tried_ = true;
    owned_ = make_map();
    map_.store(owned_.get(), std::memory_order_release);
  }
  return map_.load(std::memory_order_acquire);
}

void SegmentIndex::locate(const std::uint8_t* keys, std::size_t n, std::int64_t* source,
                          std::int64_t* row, std::size_t threads) {
  const KeyMap* map = map_for(n);
  std::fill(source, source + n, -1);
  std::fill(row, row + n, -1);
  const auto work = [&](std::size_t chunk, std::size_t) {
    const std::size_t begin = chunk * kKeysPerChunk;
    const Chunk c{keys + begin * kKeyBytes, std::min(kKeysPerChunk, n - begin), source + begin,
                  row + begin};
    if (map != nullptr) {
      ask_candidates(segments_, *map, c);
    } else {
      ask_all(segments_, c);
    }
  };
  parallel((n + kKeysPerChunk - 1) / kKeysPerChunk,
           worthwhile_threads(threads, static_cast<double>(n), kKeysPerThread), work);
}

}  // namespace pyfeat::store
