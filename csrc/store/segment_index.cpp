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
// A segment is asked for a key in the time in which so many keys go into the map.
constexpr std::size_t kMappedPerAsked = 4;
constexpr std::size_t kKeysPerRange = 8192;  // that are sorted at a time
constexpr std::size_t kKeysAtOnce = 32;      // whose buckets are asked of memory side by side

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

// Looks for keys in the segments that may hold them, several side by side.
class Candidates {
 public:
  Candidates(const Held& segments, const Chunk& chunk) : held_(segments), chunk_(chunk) {}

  // Of one key they come newest segment first, as they went into the map: the first that holds it
  // counts.
  void add(const Key& key, std::size_t segment, std::size_t place) {
    keys_[n_] = key;
    segments_[n_] = held_[segment].get();
    numbers_[n_] = static_cast<std::int64_t>(segment);
    places_[n_] = place;
    if (++n_ == Segment::kKeysAtOnce) ask();
  }
  void ask() {
    std::int64_t rows[Segment::kKeysAtOnce];
    Segment::find_each(segments_, keys_, n_, rows);
    for (std::size_t j = 0; j < n_; ++j) {
      if (rows[j] < 0 || chunk_.source[places_[j]] >= 0) continue;
      chunk_.source[places_[j]] = numbers_[j];
      chunk_.row[places_[j]] = rows[j];
    }
    n_ = 0;
  }

 private:
  const Held& held_;
  const Chunk& chunk_;
  std::size_t n_ = 0;
  Key keys_[Segment::kKeysAtOnce];
  const Segment* segments_[Segment::kKeysAtOnce];
  std::int64_t numbers_[Segment::kKeysAtOnce];
  std::size_t places_[Segment::kKeysAtOnce];
};

void ask_candidates(const Held& segments, const KeyMap& map, const Chunk& c) {
  Candidates candidates(segments, c);
  Key wanted[kKeysAtOnce];
  for (std::size_t begin = 0; begin < c.n; begin += kKeysAtOnce) {
    const std::size_t m = std::min(kKeysAtOnce, c.n - begin);
    for (std::size_t i = 0; i < m; ++i) {
      wanted[i] = Key::load(c.keys + (begin + i) * kKeyBytes);
      map.expect(wanted[i]);
    }
    for (std::size_t i = 0; i < m; ++i)
      map.candidates(wanted[i], [&](std::uint16_t number) {
        candidates.add(wanted[i], number - 1u, begin + i);
      });
  }
  candidates.ask();
}

// A key, and where it lies.
struct Place {
  Key key;
  std::size_t segment;
  std::size_t place;  // among its keys
};

// Those of all segments whose leading bits are from `begin` to before `end`; 0 is the end of all.
std::vector<Place> places_between(const Held& segments, std::uint64_t begin, std::uint64_t end) {
  std::vector<Place> places;
  for (std::size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = *segments[s];
    const std::size_t last = end == 0 ? segment.size() : segment.count_below({end, 0});
    for (std::size_t i = segment.count_below({begin, 0}); i < last; ++i)
      if (segment.row_of(i) < segment.size())
        places.push_back({Key::load(segment.key_at(i)), s, i});
  }
  return places;
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
  if (map != nullptr || asked * s * kMappedPerAsked < keys_) return map;
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

std::vector<std::vector<std::uint8_t>> SegmentIndex::left_out(std::size_t threads) const {
  std::vector<std::vector<std::uint8_t>> flags;
  for (const auto& segment : segments_) {
    flags.emplace_back(segment->size());
    for (std::size_t i = 0; i < segment->size(); ++i)
      flags.back()[i] = segment->row_of(i) >= segment->size();
  }
  if (segments_.size() < 2) return flags;
  // Keys are hashes: equal ranges of their leading bits hold about as many.
  const std::size_t ranges = keys_ / kKeysPerRange + 1;
  const auto bound = [&](std::size_t i) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(i) << 64) / ranges);
  };
  const auto work = [&](std::size_t i, std::size_t) {
    std::vector<Place> places = places_between(segments_, bound(i), bound(i + 1));
    std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
      return a.key == b.key ? a.segment > b.segment : a.key < b.key;
    });
    for (std::size_t k = 1; k < places.size(); ++k)
      if (places[k].key == places[k - 1].key) flags[places[k].segment][places[k].place] = 1;
  };
  parallel(ranges, worthwhile_threads(threads, static_cast<double>(keys_), kKeysPerRange), work);
  return flags;
}

std::vector<std::uint8_t> SegmentIndex::keys(std::size_t threads) const {
  const auto flags = left_out(threads);
  std::vector<std::uint8_t> all;
  all.reserve(keys_ * kKeyBytes);
  for (std::size_t s = segments_.size(); s-- > 0;) {
    for (const std::size_t place : segments_[s]->in_row_order()) {
      const std::uint8_t* key = segments_[s]->key_at(place);
      if (!flags[s][place]) all.insert(all.end(), key, key + kKeyBytes);
    }
  }
  return all;
}

std::size_t SegmentIndex::count_keys(std::size_t threads) const {
  std::size_t n = keys_;
  for (const auto& flags : left_out(threads))
    n -= static_cast<std::size_t>(std::count(flags.begin(), flags.end(), 1));
  return n;
}

}  // namespace pyfeat::store
