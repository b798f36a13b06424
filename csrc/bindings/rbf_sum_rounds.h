// How `rbf_sum` cuts its rows, and in which order chunk meets chunk: from the shape alone.
#pragma once

#include <algorithm>
#include <cstddef>
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

struct Pair {
  Index left, right, copy;
};
using Rounds = std::vector<std::vector<Pair>>;

// Every pair of two of `count` chunks once, by the circle method, and each chunk with itself.
inline Rounds rounds_within(Index count) {
  const Index players = round_up(count, 2), turns = players - 1;
  Rounds rounds(turns + 1);
  for (Index turn = 0; turn < turns; ++turn)
    for (Index k = 0; k < players / 2; ++k) {
      const Index a = k == 0 ? turns : (turn + k) % turns, b = (turn - k + turns) % turns;
      if (std::max(a, b) < count) rounds[turn].push_back({std::min(a, b), std::max(a, b), 0});
    }
  for (Index c = 0; c < count; ++c) rounds[turns].push_back({c, c, 0});
  return rounds;
}

// Every left chunk with every right one. A side of few chunks is there in `copies`: copy c meets
// those chunks of the other side whose number leaves c.
inline Rounds rounds_between(Index lefts, Index rights, Index copies) {
  const bool swapped = lefts > rights;
  const Index few = std::min(lefts, rights), many = std::max(lefts, rights);
  Rounds rounds(std::max(divide_up(many, copies), few));
  const auto turns = static_cast<Index>(rounds.size());
  for (Index turn = 0; turn < turns; ++turn)
    for (Index chunk = 0; chunk < few; ++chunk)
      for (Index copy = 0; copy < copies; ++copy) {
        const Index other = (chunk + turn) % turns * copies + copy;
        if (other >= many) continue;
        rounds[turn].push_back(swapped ? Pair{other, chunk, copy} : Pair{chunk, other, copy});
      }
  return rounds;
}

// Nothing waits for what happens in a chunk when only the value is wanted.
inline Rounds all_at_once(const Rounds& rounds) {
  Rounds one(1);
  for (const auto& round : rounds) one[0].insert(one[0].end(), round.begin(), round.end());
  return one;
}

}  // namespace pyfeat
