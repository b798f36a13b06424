// How `rbf_sum` cuts its rows, and in which order chunk meets chunk: from the shape alone.
#pragma once

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <vector>

namespace pyfeat {

using Index = std::ptrdiff_t;

constexpr Index kBlock = 224;             // rows of a tile: it and both its sides stay in cache
constexpr Index kBlocks = 5;              // in a chunk at most
constexpr Index kChunks = 16;             // wanted, for as many threads
constexpr Index kSmallestChunk = 112;     // rows; less is not worth its packing
constexpr Index kChunkNumbers = 1 << 20;  // in the packed rows of one chunk, about

inline Index round_up(Index n, Index to) { return (n + to - 1) / to * to; }
inline Index divide_up(Index n, Index by) { return (n + by - 1) / by; }

// How the rows of a side are cut.
struct Cut {
  Index rows, chunk, count;

  // Whole blocks where there are enough rows: they fill their panels.
  Cut(Index n, Index d) : rows(n) {
    const Index most = std::min(kBlocks, std::max<Index>(1, kChunkNumbers / (kBlock * (d + 1))));
    const Index even = std::max(kSmallestChunk, divide_up(n, kChunks));
    chunk = even < kBlock ? round_up(even, 32) : std::min(most, even / kBlock) * kBlock;
    count = divide_up(n, chunk);
  }
  Index first(Index c) const { return c * chunk; }
  Index end(Index c) const { return std::min(rows, (c + 1) * chunk); }
  Index block() const { return std::min(chunk, kBlock); }
};

// Chunk meets chunk, each adding to the copy of its results with that number.
struct Pair {
  Index left, right, left_copy, right_copy;
};

// Every pair of two of `count` chunks once, by the circle method, and each chunk with itself.
inline std::vector<Pair> pairs_within(Index count) {
  const Index players = round_up(count, 2), turns = players - 1;
  std::vector<Pair> pairs;
  for (Index turn = 0; turn < turns; ++turn)
    for (Index k = 0; k < players / 2; ++k) {
      const Index a = k == 0 ? turns : (turn + k) % turns, b = (turn - k + turns) % turns;
      if (std::max(a, b) < count) pairs.push_back({std::min(a, b), std::max(a, b), 0, 0});
    }
  for (Index c = 0; c < count; ++c) pairs.push_back({c, c, 0, 0});
  return pairs;
}

// Every left chunk with every right one. A side of few chunks is there in `copies`: copy c meets
// those chunks of the other side whose number leaves c.
inline std::vector<Pair> pairs_between(Index lefts, Index rights, Index copies) {
  const bool swapped = lefts > rights;
  const Index few = std::min(lefts, rights), many = std::max(lefts, rights);
  const Index turns = std::max(divide_up(many, copies), few);
  std::vector<Pair> pairs;
  for (Index turn = 0; turn < turns; ++turn)
    for (Index chunk = 0; chunk < few; ++chunk)
      for (Index copy = 0; copy < copies; ++copy) {
        const Index other = (chunk + turn) % turns * copies + copy;
        if (other >= many) continue;
        pairs.push_back(swapped ? Pair{other, chunk, 0, copy} : Pair{chunk, other, copy, 0});
      }
  return pairs;
}

// Lets a pair wait until every earlier pair that adds to the same rows has ended. Pairs are begun
// in their order, so the first one that has not ended never waits.
class Turns {
 public:
  // `within`: left and right chunks are the same ones.
  Turns(const std::vector<Pair>& pairs, Index lefts, Index rights, bool within)
      : ended_(pairs.size(), false) {
    Index copies = 1;
    for (const Pair& pair : pairs)
      copies = std::max({copies, pair.left_copy + 1, pair.right_copy + 1});
    std::vector<Index> last((lefts + rights) * copies, -1);
    for (const Pair& pair : pairs) {
      Index& left = last[pair.left * copies + pair.left_copy];
      Index& right = last[((within ? 0 : lefts) + pair.right) * copies + pair.right_copy];
      before_.push_back({left, right});
      left = right = static_cast<Index>(before_.size()) - 1;
    }
  }

  void wait(std::size_t task) {
    std::unique_lock<std::mutex> lock(guard_);
    for (const Index before : before_[task])
      changed_.wait(lock, [&] { return before < 0 || ended_[before]; });
  }

  // Ends a pair, also one that throws: nobody waits for it for ever.
  class End {
   public:
    End(Turns& turns, std::size_t task) : turns_(turns), task_(task) {}
    End(const End&) = delete;
    End& operator=(const End&) = delete;
    ~End() {
      {
        const std::lock_guard<std::mutex> lock(turns_.guard_);
        turns_.ended_[task_] = true;
      }
      turns_.changed_.notify_all();
    }

   private:
    Turns& turns_;
    std::size_t task_;
  };

 private:
  std::vector<std::array<Index, 2>> before_;
  std::vector<bool> ended_;
  std::mutex guard_;
  std::condition_variable changed_;
};

}  // namespace pyfeat
