// Chunks of rows, their room and threads for `moments`. Arguments were checked in pyfeat/ops.
#include "../cpu/moments.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kChunkNumbers = 3 << 19;  // with both sides packed: in a shared cache
constexpr std::ptrdiff_t kMostRows = 4096, kFewestRows = 512;
constexpr std::ptrdiff_t kTileRows = 128, kTileColumns = 256;
constexpr std::ptrdiff_t kTiles = 16;          // at least, where d allows: work for every thread
constexpr std::ptrdiff_t kSampledRows = 64;    // whose mean a chunk of equal weights is shifted by
constexpr double kNumbersPerThread = 1 << 16;  // copied, or a hundred times as many multiplied

std::ptrdiff_t whole(std::ptrdiff_t n, std::ptrdiff_t of) { return (n + of - 1) / of * of; }
std::ptrdiff_t parts(std::ptrdiff_t n, std::ptrdiff_t of) { return (n + of - 1) / of; }

template <typename T>
std::unique_ptr<T[]> room(std::ptrdiff_t n) {
  return std::unique_ptr<T[]>(new T[static_cast<std::size_t>(n)]);
}

// How rows of width d are cut; the same for every number of threads but for the tiles, whose cut
// changes no sum.
struct Plan {
  Plan(std::ptrdiff_t width, std::ptrdiff_t rows, bool only_diagonal, std::size_t most_threads)
      : d(width), diagonal(only_diagonal), threads(most_threads) {
    const std::ptrdiff_t fitting = kChunkNumbers / std::max<std::ptrdiff_t>(d, 1);
    chunk =
        std::min(std::clamp(fitting, kFewestRows, kMostRows), std::max<std::ptrdiff_t>(rows, 1));
    slabs = parts(chunk, shape.kc);
    // No power of two from row to row: columns would fall into few sets of the cache.
    pitch = whole(d, 16) + 16;
    a_slab = packed_size(d, shape.kc, shape.mr);
    b_slab = packed_size(d, shape.kc, shape.nr);
    if (!diagonal) cut_tiles();
  }

  void cut_tiles() {
    std::ptrdiff_t tall = kTileRows / shape.mr * shape.mr;
    while (tall > shape.mr && d / tall * parts(d, 2 * kTileColumns) < kTiles) tall -= shape.mr;
    for (std::ptrdiff_t i = 0; i < d; i += tall)
      for (std::ptrdiff_t j = i / shape.nr * shape.nr; j < d; j += kTileColumns)
        tiles.push_back({i, std::min(d, i + tall), j, std::min(d, j + kTileColumns)});
    tile_numbers = tall * kTileColumns;
  }

  GemmShape shape = PYFEAT_KERNEL(gemm_shape)();
  std::ptrdiff_t d, chunk, slabs, pitch, tile_numbers = 0;
  std::size_t a_slab, b_slab;
  bool diagonal;
  std::size_t threads;
  std::vector<MomentTile> tiles;
};

struct State {
  double* total;    // (groups,)
  double* mean;     // (groups, d)
  double* scatter;  // (groups, d, d), the upper triangle; or (groups, d)
};

class Accumulator {
 public:
  Accumulator(const MomentRows& x, const Plan& cut)
      : rows(x),
        plan(cut),
        shift(room<float>(cut.d)),
        rest(room<double>(cut.d)),
        gap(room<double>(cut.d)),
        sums(room<double>(cut.slabs * cut.d)) {
    const auto workers = static_cast<std::ptrdiff_t>(plan.threads);
    slab = room<float>(workers * plan.shape.kc * plan.pitch);
    if (plan.diagonal) {
      squares = room<double>(plan.slabs * plan.d);
    } else {
      a = room<float>(plan.slabs * static_cast<std::ptrdiff_t>(plan.a_slab));
      b = room<float>(plan.slabs * static_cast<std::ptrdiff_t>(plan.b_slab));
      product = room<float>(workers * plan.tile_numbers);
    }
  }

  // Adds rows [first, first + count) to one group.
  void add(std::ptrdiff_t first, std::ptrdiff_t count, double* total, double* mean,
           double* scatter) {
    const std::ptrdiff_t step =
        rows.weights ? 1 : std::max<std::ptrdiff_t>(count / kSampledRows, 1);
    PYFEAT_KERNEL(moments_mean)(rows, first, count, step, shift.get());
    const std::ptrdiff_t used = parts(count, plan.shape.kc), depth = parts(count, used);
    read(first, count, used, depth);
    const MomentShift change = merge(weight(first, count), parts(count, depth), total, mean);
    if (plan.diagonal)
      add_squares(parts(count, depth), change, scatter);
    else
      add_products(count, depth, change, scatter);
  }

 private:
  double weight(std::ptrdiff_t first, std::ptrdiff_t count) const {
    if (!rows.weights) return static_cast<double>(count);
    double sum = 0;
    for (std::ptrdiff_t i = first; i < first + count; ++i)
      sum += rows.weights[rows.order ? rows.order[i] : i];
    return sum;
  }

  void read(std::ptrdiff_t first, std::ptrdiff_t count, std::ptrdiff_t used, std::ptrdiff_t depth) {
    const double work = static_cast<double>(count) * static_cast<double>(plan.d);
    const std::size_t threads = worthwhile_threads(plan.threads, work, kNumbersPerThread);
    parallel(static_cast<std::size_t>(used), threads, [&](std::size_t at, std::size_t thread) {
      const auto s = static_cast<std::ptrdiff_t>(at);
      const std::ptrdiff_t k = std::min(depth, count - s * depth);
      if (k <= 0) return;
      float* mine = slab.get() + static_cast<std::ptrdiff_t>(thread) * plan.shape.kc * plan.pitch;
      PYFEAT_KERNEL(moments_fill)(rows, first + s * depth, k, shift.get(), mine, plan.pitch,
                                  sums.get() + s * plan.d);
      if (plan.diagonal) {
        PYFEAT_KERNEL(moments_squares)(mine, k, plan.d, plan.pitch, squares.get() + s * plan.d);
        return;
      }
      const Rows columns{mine, Item::kFloat32, 1, plan.pitch, nullptr};
      PYFEAT_KERNEL(gemm_pack)(columns, plan.d, k, plan.shape.mr, a.get() + at * plan.a_slab);
      PYFEAT_KERNEL(gemm_pack)(columns, plan.d, k, plan.shape.nr, b.get() + at * plan.b_slab);
    });
  }

  // The update of Chan, Golub and LeVeque, The American Statistician 37(3), 1983, for the mean;
  // returns what the scatter gets beside the products.
  MomentShift merge(double added, std::ptrdiff_t used, double* total, double* mean) {
    const double both = *total + added;
    for (std::ptrdiff_t j = 0; j < plan.d; ++j) {
      double sum = 0;
      for (std::ptrdiff_t s = 0; s < used; ++s) sum += sums[s * plan.d + j];
      rest[j] = sum / added;
      gap[j] = shift[j] + rest[j] - mean[j];
      mean[j] += gap[j] * (added / both);
    }
    const MomentShift change{added, *total * added / both, rest.get(), gap.get()};
    *total = both;
    return change;
  }

  void add_squares(std::ptrdiff_t used, const MomentShift& change, double* scatter) {
    for (std::ptrdiff_t j = 0; j < plan.d; ++j) {
      double sum = change.factor * gap[j] * gap[j] - change.weight * rest[j] * rest[j];
      for (std::ptrdiff_t s = 0; s < used; ++s) sum += squares[s * plan.d + j];
      scatter[j] += sum;
    }
  }

  void add_products(std::ptrdiff_t count, std::ptrdiff_t depth, const MomentShift& change,
                    double* scatter) {
    const MomentPanels panels{a.get(), b.get(), plan.a_slab, plan.b_slab, count, depth};
    const double work = static_cast<double>(count) * static_cast<double>(plan.d * plan.d) / 200;
    const std::size_t threads = worthwhile_threads(plan.threads, work, kNumbersPerThread);
    parallel(plan.tiles.size(), threads, [&](std::size_t tile, std::size_t thread) {
      float* mine = product.get() + static_cast<std::ptrdiff_t>(thread) * plan.tile_numbers;
      PYFEAT_KERNEL(moments_tile)(panels, plan.tiles[tile], change, plan.d, mine, scatter);
    });
  }

  const MomentRows& rows;
  const Plan& plan;
  std::unique_ptr<float[]> shift;           // (d,)
  std::unique_ptr<double[]> rest, gap;      // (d,)
  std::unique_ptr<double[]> sums, squares;  // (slabs, d)
  std::unique_ptr<float[]> slab, a, b, product;
};

void moments(const std::array<std::uintptr_t, 4>& addresses, int item, std::ptrdiff_t d,
             std::uintptr_t bounds, std::ptrdiff_t groups, bool diagonal, std::size_t threads,
             const std::array<std::uintptr_t, 3>& state) {
  const py::gil_scoped_release unlocked;
  const MomentRows rows{reinterpret_cast<const void*>(addresses[0]),
                        static_cast<Item>(item),
                        d,
                        reinterpret_cast<const std::int64_t*>(addresses[1]),
                        reinterpret_cast<const float*>(addresses[2]),
                        reinterpret_cast<const float*>(addresses[3])};
  const auto* bound = reinterpret_cast<const std::int64_t*>(bounds);
  const State out{reinterpret_cast<double*>(state[0]), reinterpret_cast<double*>(state[1]),
                  reinterpret_cast<double*>(state[2])};
  std::ptrdiff_t most = 0;
  for (std::ptrdiff_t g = 0; g < groups; ++g)
    most = std::max(most, static_cast<std::ptrdiff_t>(bound[g + 1] - bound[g]));
  if (most == 0) return;
  const Plan plan(d, most, diagonal, std::max<std::size_t>(threads, 1));
  Accumulator sum(rows, plan);
  for (std::ptrdiff_t g = 0; g < groups; ++g) {
    const std::ptrdiff_t count = bound[g + 1] - bound[g];
    const std::ptrdiff_t turns = parts(count, plan.chunk);
    for (std::ptrdiff_t turn = 0; turn < turns; ++turn) {
      const std::ptrdiff_t begin = count * turn / turns, end = count * (turn + 1) / turns;
      sum.add(bound[g] + begin, end - begin, out.total + g, out.mean + g * d,
              out.scatter + g * (diagonal ? d : d * d));
    }
  }
}

// Copies the upper triangle of every matrix to the lower one.
void moments_mirror(std::uintptr_t scatter, std::ptrdiff_t groups, std::ptrdiff_t d,
                    std::size_t threads) {
  const py::gil_scoped_release unlocked;
  constexpr std::ptrdiff_t kBlock = 32;
  double* first = reinterpret_cast<double*>(scatter);
  const std::ptrdiff_t across = parts(d, kBlock);
  const double work = static_cast<double>(groups * d) * static_cast<double>(d);
  threads = worthwhile_threads(threads, work, kNumbersPerThread);
  parallel(static_cast<std::size_t>(groups * across), threads, [&](std::size_t at, std::size_t) {
    const auto strip = static_cast<std::ptrdiff_t>(at);
    double* matrix = first + strip / across * d * d;
    const std::ptrdiff_t j0 = strip % across * kBlock, j1 = std::min(d, j0 + kBlock);
    for (std::ptrdiff_t i0 = 0; i0 < j1; i0 += kBlock)
      for (std::ptrdiff_t j = j0; j < j1; ++j)
        for (std::ptrdiff_t i = i0; i < std::min(j, i0 + kBlock); ++i)
          matrix[j * d + i] = matrix[i * d + j];
  });
}

}  // namespace

void bind_moments(py::module_& m) {
  m.def("moments", &moments, py::arg("rows"), py::arg("item"), py::arg("d"), py::arg("bounds"),
        py::arg("groups"), py::arg("diagonal"), py::arg("threads"), py::arg("state"),
        "Add rows to the moments at addresses `state` (total, mean, scatter; its upper triangle).\n"
        "rows: addresses of the rows, their order, weights and scales, 0 where there are none;\n"
        "group g has those from bounds[g] to bounds[g + 1] of the order.");
  m.def("moments_mirror", &moments_mirror, py::arg("scatter"), py::arg("groups"), py::arg("d"),
        py::arg("threads"), "Copy the upper triangle of every matrix to the lower one.");
}

}  // namespace pyfeat
