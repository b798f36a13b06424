// Blocks of base rows against blocks of queries, on threads. Arguments were checked in pyfeat/ops.
#include "../cpu/topk.h"

#include <memory>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"
#include "topk_shortlist.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kQueriesAtOnce = 2048;  // their shortlists are alive together
constexpr std::size_t kShortlistBytes = std::size_t{64} << 20;  // of one thread
constexpr std::ptrdiff_t kQueriesOfTile = 336;  // packed, they stay in the second-level cache
constexpr int kRowsOfTile = 256;                // and so do these and their products
constexpr std::ptrdiff_t kFewQueries = 24;      // for so few, packing rows takes longer than dots
constexpr double kWorthAThread = 2e6;           // multiplications

template <typename Number>
std::unique_ptr<Number[]> room_for(std::ptrdiff_t n) {
  return std::unique_ptr<Number[]>(new Number[static_cast<std::size_t>(n)]);
}

Rows cut(Rows rows, std::ptrdiff_t first) {
  rows.data =
      static_cast<const std::uint8_t*>(rows.data) + first * rows.row_stride * bytes_of(rows.item);
  if (rows.scales) rows.scales += first;
  return rows;
}

Rows without_scales(Rows rows) {
  rows.scales = nullptr;
  return rows;
}

// Queries [first, first + n) of one pass over the base, tile by tile: packed as side A.
struct Queries {
  Queries(const Search& search, std::ptrdiff_t first, std::ptrdiff_t n, bool bf16)
      : n(n), d(search.d), first(search.queries + first * search.d), bounds(n), sides(n) {
    const Rows rows{this->first, Item::kFloat32, d, 1, nullptr};
    const auto squared = room_for<double>(n);
    const auto rest = room_for<float>(n);
    PYFEAT_KERNEL(topk_norms)(rows, n, d, squared.get(), rest.get());
    for (std::ptrdiff_t i = 0; i < n; ++i) {
      bounds[i] = bound_of(squared[i], bf16 ? rest[i] : 0.0f, d, search.metric);
      sides[i] = bound_of(squared[i], 0.0f, d, search.metric);
    }
    if (n <= kFewQueries) return;
    const int mr = PYFEAT_KERNEL(gemm_shape)().mr;
    size_of_tile = static_cast<std::ptrdiff_t>(packed_size(kQueriesOfTile, d, mr));
    const std::ptrdiff_t tiles = (n + kQueriesOfTile - 1) / kQueriesOfTile;
    packed = room_for<float>(tiles * size_of_tile);
    if (bf16) packed_bf16 = room_for<std::uint16_t>(tiles * size_of_tile);
    for (std::ptrdiff_t t = 0; t < tiles; ++t) {
      const std::ptrdiff_t count = std::min(kQueriesOfTile, n - t * kQueriesOfTile);
      const Rows part = cut(rows, t * kQueriesOfTile);
      PYFEAT_KERNEL(gemm_pack)(part, count, d, mr, packed.get() + t * size_of_tile);
      if (bf16)
        PYFEAT_KERNEL(gemm_pack_bf16)(part, count, d, mr, packed_bf16.get() + t * size_of_tile);
    }
  }
  bool finite(std::ptrdiff_t i) const { return std::isfinite(bounds[i].squared); }

  std::ptrdiff_t n, d, size_of_tile = 0;
  const float* first;
  std::vector<QueryBound> bounds;  // of the screening in bfloat16 where there is one
  std::vector<QueryBound> sides;   // of that in float32
  std::unique_ptr<float[]> packed;
  std::unique_ptr<std::uint16_t[]> packed_bf16;
};

// One thread's room and what it found.
class Worker {
 public:
  Worker(const Search& search, const Queries& queries, bool bf16)
      : search_(search),
        queries_(queries),
        bf16_(bf16),
        bounds_(kRowsOfTile),
        lists_(static_cast<std::size_t>(queries.n)),
        squared_(kRowsOfTile),
        rest_(kRowsOfTile),
        found_(kRowsOfTile) {
    const bool few = queries.n <= kFewQueries;
    const int nr = PYFEAT_KERNEL(gemm_shape)().nr;
    products_ = room_for<float>(std::min(kQueriesOfTile, queries.n) * kRowsOfTile);
    packed_ = room_for<float>(
        few ? kRowsOfTile : static_cast<std::ptrdiff_t>(packed_size(kRowsOfTile, search.d, nr)));
  }

  std::vector<Shortlist>& lists() { return lists_; }

  void take_rows(std::ptrdiff_t first, int count) {
    const bool few = queries_.n <= kFewQueries;
    const Rows rows = cut(search_.base, first);
    if (few)
      multiply_few(rows, count);
    else
      pack(rows, count);
    for (std::ptrdiff_t q = 0; q < queries_.n; q += kQueriesOfTile) {
      const std::ptrdiff_t n = std::min(kQueriesOfTile, queries_.n - q);
      if (!few) multiply(q, n, count);
      for (std::ptrdiff_t i = 0; i < n; ++i)
        if (queries_.finite(q + i)) search(q + i, products_.get() + i * kRowsOfTile, first, count);
    }
    judge(count);
  }

 private:
  void multiply_few(const Rows& rows, int count) {
    float* squared = packed_.get();
    PYFEAT_KERNEL(topk_dots)
    (queries_.first, queries_.n, rows, count, search_.d, squared, products_.get(), kRowsOfTile);
    bounds_.fill_fast(squared, rows.scales, count, search_.d, search_.metric, [&](int i) {
      PYFEAT_KERNEL(topk_norms)(cut(rows, i), 1, search_.d, squared_.data(), nullptr);
      return squared_[0];
    });
  }

  void pack(const Rows& rows, int count) {
    // Whole numbers up to 256 are their own bfloat16.
    float* rest = bf16_ && rows.item != Item::kInt8 ? rest_.data() : nullptr;
    PYFEAT_KERNEL(topk_norms)(rows, count, search_.d, squared_.data(), rest);
    bounds_.fill(squared_.data(), rest, rows.scales, count, search_.d, search_.metric);
    const Rows plain = without_scales(rows);
    const int nr = PYFEAT_KERNEL(gemm_shape)().nr;
    if (bf16_)
      PYFEAT_KERNEL(gemm_pack_bf16)(plain, count, search_.d, nr, packed_bf16());
    else
      PYFEAT_KERNEL(gemm_pack)(plain, count, search_.d, nr, packed_.get());
  }

  std::uint16_t* packed_bf16() { return reinterpret_cast<std::uint16_t*>(packed_.get()); }

  void multiply(std::ptrdiff_t q, std::ptrdiff_t n, int count) {
    const std::ptrdiff_t at = q / kQueriesOfTile * queries_.size_of_tile;
    if (bf16_) PYFEAT_KERNEL(gemm_packed_bf16)
    (n, count, search_.d, queries_.packed_bf16.get() + at, packed_bf16(), false, products_.get(),
     kRowsOfTile);
    else PYFEAT_KERNEL(gemm_packed)(n, count, search_.d, queries_.packed.get() + at, packed_.get(),
                                    false, products_.get(), kRowsOfTile);
  }

  void search(std::ptrdiff_t q, const float* products, std::ptrdiff_t first, int count) {
    Shortlist& list = lists_[static_cast<std::size_t>(q)];
    const QueryBound& own = (bf16_ ? queries_.bounds : queries_.sides)[static_cast<std::size_t>(q)];
    const float most = own.a * bounds_.most_p + own.b * bounds_.most_w + bounds_.most_z + own.z;
    const float threshold = list.threshold();
    const float limit = threshold - most * 1.00001f - std::fabs(threshold) * 0x1p-22f;
    const int hits = PYFEAT_KERNEL(topk_search)(products, bounds_.mul.data(), bounds_.add.data(),
                                                count, limit, found_.data());
    for (int h = 0; h < hits; ++h) {
      const int i = found_[static_cast<std::size_t>(h)];
      const auto at = static_cast<std::size_t>(i);
      if (bounds_.mul[at] != bounds_.mul[at]) continue;
      const float key = products[i] * bounds_.mul[at] + bounds_.add[at];
      const float error =
          (own.a * bounds_.p[at] + own.b * bounds_.w[at] + bounds_.z[at] + own.z) * 1.00001f +
          std::fabs(key) * 0x1p-22f;
      Candidate c{key - error, key + error, std::numeric_limits<float>::quiet_NaN(), first + i};
      if (!(std::isfinite(c.lower) && std::isfinite(c.upper))) {
        c.lower = -std::numeric_limits<float>::infinity();
        c.upper = std::numeric_limits<float>::infinity();
      }
      if (!(c.upper < list.threshold()))
        list.add(c, search_, queries_.first + q * search_.d, own.squared);
    }
  }

  // Scoring costs some hundred times a product's share: where bfloat16 tells too little apart, go
  // on in float32.
  void judge(int count) {
    if (!bf16_) return;
    pairs_ += static_cast<double>(count) * static_cast<double>(queries_.n);
    if (++blocks_ % 8) return;
    double scored = 0;
    for (const Shortlist& list : lists_) scored += static_cast<double>(list.scored());
    if (scored * 128 > pairs_) bf16_ = false;
  }

  const Search& search_;
  const Queries& queries_;
  bool bf16_;
  RowBounds bounds_;
  std::vector<Shortlist> lists_;
  std::vector<double> squared_;
  std::vector<float> rest_;
  std::vector<std::int32_t> found_;
  std::unique_ptr<float[]> products_, packed_;
  double pairs_ = 0;
  std::size_t blocks_ = 0;
};

// The k best of what all threads found for query q, best first.
void finish(std::vector<Worker>& workers, const Search& search, const Queries& queries,
            std::ptrdiff_t q, float* scores, std::int64_t* rows) {
  Shortlist all;
  for (Worker& worker : workers) {
    auto& items = worker.lists()[static_cast<std::size_t>(q)].items();
    all.items().insert(all.items().end(), items.begin(), items.end());
    items = {};
  }
  all.prune(search.k);
  all.settle(search, queries.first + q * search.d,
             queries.bounds[static_cast<std::size_t>(q)].squared);
  std::sort(all.items().begin(), all.items().end(),
            [](const Candidate& x, const Candidate& y) { return x.before(y); });
  for (std::size_t i = 0; i < search.k; ++i) {
    const bool there = i < all.items().size();
    const float score = there ? all.items()[i].score : std::numeric_limits<float>::quiet_NaN();
    scores[i] = search.metric == Metric::kL2 ? 0.0f - score : score;
    rows[i] = there ? all.items()[i].row : -1;
  }
}

void run_topk(const Search& search, std::ptrdiff_t n, std::ptrdiff_t m, std::size_t threads,
              float* scores, std::int64_t* rows) {
  const std::size_t list_bytes = Shortlist::capacity(search.k) * sizeof(Candidate);
  const std::ptrdiff_t at_once = std::clamp<std::ptrdiff_t>(
      static_cast<std::ptrdiff_t>(kShortlistBytes / list_bytes), 1, kQueriesAtOnce);
  for (std::ptrdiff_t first = 0; first < n; first += at_once) {
    const std::ptrdiff_t count = std::min(at_once, n - first);
    const bool bf16 = count > kFewQueries && current_isa() == Isa::kAvx512Bf16;
    const Queries queries(search, first, count, bf16);
    // Few queries leave time only for reading: blocks that the first-level cache nearly holds.
    const int tile = count > kFewQueries ? kRowsOfTile : 64;
    const auto blocks = static_cast<std::size_t>((m + tile - 1) / tile);
    const double work =
        static_cast<double>(count + 4) * static_cast<double>(m) * static_cast<double>(search.d + 8);
    const std::size_t hands = std::min(worthwhile_threads(threads, work, kWorthAThread), blocks);
    std::vector<Worker> workers;
    workers.reserve(hands);
    for (std::size_t t = 0; t < hands; ++t) workers.emplace_back(search, queries, bf16);
    parallel(blocks, hands, [&](std::size_t block, std::size_t thread) {
      const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(block) * tile;
      workers[thread].take_rows(row, static_cast<int>(std::min<std::ptrdiff_t>(tile, m - row)));
    });
    const std::ptrdiff_t share = 16;
    parallel(static_cast<std::size_t>((count + share - 1) / share), hands,
             [&](std::size_t part, std::size_t) {
               const std::ptrdiff_t begin = static_cast<std::ptrdiff_t>(part) * share;
               for (std::ptrdiff_t q = begin; q < std::min(begin + share, count); ++q) {
                 const auto at = (first + q) * static_cast<std::ptrdiff_t>(search.k);
                 finish(workers, search, queries, q, scores + at, rows + at);
               }
             });
  }
}

void topk(std::uintptr_t queries, std::ptrdiff_t n, std::uintptr_t base, std::ptrdiff_t m,
          std::ptrdiff_t row_stride, int item, std::uintptr_t scales, std::ptrdiff_t d,
          std::size_t k, int metric, std::size_t threads,
          const std::pair<std::uintptr_t, std::uintptr_t>& out) {
  const py::gil_scoped_release unlocked;
  const Rows rows{reinterpret_cast<const void*>(base), static_cast<Item>(item), row_stride, 1,
                  reinterpret_cast<const float*>(scales)};
  const Search search{rows, reinterpret_cast<const float*>(queries), d, k,
                      static_cast<Metric>(metric)};
  run_topk(search, n, m, threads, reinterpret_cast<float*>(out.first),
           reinterpret_cast<std::int64_t*>(out.second));
}

}  // namespace

void bind_topk(py::module_& m) {
  m.def(
      "topk", &topk, py::arg("queries"), py::arg("n"), py::arg("base"), py::arg("m"),
      py::arg("row_stride"), py::arg("item"), py::arg("scales"), py::arg("d"), py::arg("k"),
      py::arg("metric"), py::arg("threads"), py::arg("out"),
      "The k best rows of base (m, d) for each float32 query (n, d), at addresses; out: those of\n"
      "float32 scores and int64 rows, (n, k) each. metric: 0 inner product, 1 cosine, 2 squared\n"
      "L2; item: 0 float32, 1 float16, 2 bfloat16, 3 int8; scales: address or 0.");
}

}  // namespace pyfeat
