// `rbf_sum` over chunks of rows against chunks of rows: who works on which tile, and with what
// room.
//
// A round is a set of pairs of chunks in which no chunk occurs twice. Threads take the pairs in
// that order; one waits for the earlier pairs of its two chunks, so that no two threads add to the
// same rows. Rounds and chunks depend on the shape alone: the result has the same bits for any
// number of threads.
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#ifdef PYFEAT_X86
#include <xmmintrin.h>
#endif

#include "bindings.h"
#include "rbf_sum_blocks.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr double kPairWork = 2e6;  // multiplications that are worth a thread

// Weights times tiny kernel values may be subnormal, which some CPUs multiply slowly: they become
// 0.
class NoSubnormals {
 public:
#ifdef PYFEAT_X86
  NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~NoSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Where a tile adds what it found: `sums` and the others start at row 0 of the side.
struct Target {
  double* sums;
  double* pulls;
  float* gradient;
};

// What one tile says of one of its sides, whole vectors each.
struct Found {
  Floats weights, sums, pulls, norms;

  TileSide side(const Block& block) {
    weights = block.weights;
    sums.assign(weights.size(), 0.0f);
    pulls.assign(weights.size(), 0.0f);
    return {block.count, block.norms.data(), weights.data(), sums.data(), pulls.data()};
  }

  const float* no_norms(const Block& block) {
    norms.resize(block.norms.size());
    for (std::size_t i = 0; i < norms.size(); ++i) norms[i] = block.norms[i] * 0;  // NaN stays
    return norms.data();
  }
};

// One thread's room.
class Worker {
 public:
  explicit Worker(const Problem& problem) : p_(problem) {
    tile_.resize(round_up(kBlock, p_.panels.mr) * p_.stride);
    if (p_.turns())
      coefficients_.resize(packed_size(kBlock, p_.stride, PYFEAT_KERNEL(gemm_shape)().mr));
  }

  // The sum over all rows of chunk l of the left sample and chunk r of the right one; `same`: they
  // are one.
  double run(const Sample& left, Index l, const Target& to_left, const Sample& right, Index r,
             const Target& to_right, bool same) {
    const Index wide = right.cut.block(), tall = left.cut.block();
    const Index count = divide_up(right.cut.end(r) - right.cut.first(r), wide);
    if (own_.size() < static_cast<std::size_t>(count)) own_.resize(count);
    std::vector<const Block*> columns(count);
    for (Index j = 0; j < count; ++j)
      columns[j] = &right.take(right.cut.first(r) + j * wide, false, centred_, own_[j]);
    double total = 0;
    for (Index i = 0, first = left.cut.first(l); first < left.cut.end(l); ++i, first += tall) {
      const Block& rows = left.take(first, true, centred_, own_rows_);
      for (Index j = same ? i : 0; j < count; ++j) {
        const bool diagonal = same && i == j;
        const double sum = multiply(left.side, rows, right.side, *columns[j], diagonal);
        total += same && !diagonal ? 2 * sum : sum;
        deliver(left.side, rows, of_rows_, right.side, *columns[j], to_left, false);
        if (!diagonal)
          deliver(right.side, *columns[j], of_columns_, left.side, rows, to_right, true);
      }
    }
    return total;
  }

 private:
  // Leaves the coefficients in the tile.
  double multiply(const Side& left, const Block& rows, const Side& right, const Block& columns,
                  bool diagonal) {
    const Index m = round_up(rows.count, p_.panels.mr), n = round_up(columns.count, p_.panels.nr);
    if (p_.laplacian())
      PYFEAT_KERNEL(rbf_distances)(m, n, p_.d, rows.rows.data(), columns.columns.data(),
                                   tile_.data(), p_.stride);
    else
      PYFEAT_KERNEL(gemm_packed)(m, n, p_.d, rows.rows.data(), columns.columns.data(), false,
                                 tile_.data(), p_.stride);
    TileSide down = of_rows_.side(rows), across = of_columns_.side(columns);
    if (p_.euclidean() &&
        PYFEAT_KERNEL(rbf_near)(p_.form, down, left.data + rows.first * p_.d, across,
                                right.data + columns.first * p_.d, p_.d, tile_.data(), p_.stride)) {
      down.norms = of_rows_.no_norms(rows);
      across.norms = of_columns_.no_norms(columns);
    }
    return PYFEAT_KERNEL(rbf_tile)(p_.form, down, across, tile_.data(), p_.stride, p_.wanted,
                                   diagonal, p_.leave_out);
  }

  // Adds what the tile says of the rows of `own` to them; `across`: they are its columns.
  void deliver(const Side& side, const Block& own, const Found& found, const Side& other_side,
               const Block& other, const Target& to, bool across) {
    if (p_.wanted == Wanted::kValue) return;
    for (Index i = 0; i < own.count; ++i) {
      to.sums[own.first + i] += found.sums[i];
      if (p_.gradient()) to.pulls[own.first + i] += found.pulls[i];
    }
    if (!p_.gradient()) return;
    float* gradient = to.gradient + own.first * p_.d;
    const Index down = across ? 1 : p_.stride, along = across ? p_.stride : 1;
    if (p_.laplacian()) {
      PYFEAT_KERNEL(rbf_signs)(side.data + own.first * p_.d, own.count,
                               other_side.data + other.first * p_.d, other.count, p_.d,
                               tile_.data(), down, along, gradient);
      return;
    }
    const Rows tile{tile_.data(), Item::kFloat32, down, along, nullptr};
    PYFEAT_KERNEL(gemm_pack)(tile, own.count, other.count, PYFEAT_KERNEL(gemm_shape)().mr,
                             coefficients_.data());
    PYFEAT_KERNEL(gemm_packed)(own.count, p_.d, other.count, coefficients_.data(),
                               other.turned.data(), true, gradient, p_.d);
  }

  const Problem& p_;
  Floats centred_, tile_, coefficients_;
  Found of_rows_, of_columns_;
  Block own_rows_;
  std::vector<Block> own_;
};

// Sums and gradients of a side, `copies` times; the first copy is where the result belongs.
class Targets {
 public:
  Targets(const Side& side, Index d, Wanted wanted, Index copies) : side_(side), d_(d) {
    if (wanted == Wanted::kValue) return;
    const bool gradient = wanted == Wanted::kGradient;
    sums_.resize((copies - 1) * side.count);
    pulls_.resize(gradient ? copies * side.count : 0);
    gradients_.resize(gradient ? (copies - 1) * side.count * d : 0);
  }
  Target copy(Index c) {
    if (c == 0) return {side_.sums, pulls_.data(), side_.gradient};
    return {sums_.data() + (c - 1) * side_.count, pulls_.data() + c * side_.count,
            gradients_.data() + (c - 1) * side_.count * d_};
  }
  // Adds the other copies to the first, in their order, and turns the gradient's sums over c_ij y_j
  // into sums over c_ij (y_j - x_i) where `euclidean`; then times `scale`.
  void finish(const Problem& p, Index copies, float scale, Index first, Index end) {
    for (Index c = 1; c < copies; ++c) {
      const Target from = copy(c);
      for (Index i = first; i < end; ++i) side_.sums[i] += from.sums[i];
      if (!p.gradient()) continue;
      for (Index i = first; i < end; ++i) pulls_[i] += from.pulls[i];
      for (Index i = first * d_; i < end * d_; ++i) side_.gradient[i] += from.gradient[i];
    }
    if (!p.gradient()) return;
    for (Index i = first; i < end; ++i) {
      const float pull = p.euclidean() ? static_cast<float>(pulls_[i]) : 0.0f;
      const float* x = side_.data + i * d_;
      float* to = side_.gradient + i * d_;
      for (Index k = 0; k < d_; ++k)
        to[k] = scale * (p.euclidean() ? to[k] - pull * (x[k] - p.centre[k]) : to[k]);
    }
  }

 private:
  Side side_;
  Index d_;
  std::vector<double> sums_, pulls_;
  Floats gradients_;
};

// All pairs of chunks; returns the sum of their values.
double run_pairs(const Problem& p, const Sample& left, const Sample& right, bool within,
                 const std::vector<Pair>& pairs, Targets& to_left, Targets& to_right,
                 std::size_t threads) {
  std::vector<std::unique_ptr<Worker>> workers(threads);
  std::vector<double> values(pairs.size());
  Turns turns(pairs, left.cut.count, right.cut.count, within);
  parallel(pairs.size(), threads, [&](std::size_t task, std::size_t thread) {
    const NoSubnormals fast;
    const Pair& pair = pairs[task];
    const bool same = within && pair.left == pair.right;
    const Turns::End end(turns, task);
    if (!workers[thread]) workers[thread] = std::make_unique<Worker>(p);
    if (p.wanted != Wanted::kValue) turns.wait(task);
    const Target to_rows = to_left.copy(pair.left_copy);
    const Target to_columns = within ? to_rows : to_right.copy(pair.right_copy);
    const double value =
        workers[thread]->run(left, pair.left, to_rows, right, pair.right, to_columns, same);
    values[task] = within && !same ? 2 * value : value;
  });
  double total = 0;
  for (const double value : values) total += value;
  return total;
}

double run(const Problem& p, const Side& x, const Side* other, std::size_t threads) {
  Sample left(p, x, true, !other), own_right(p, other ? *other : x, false, true);
  Sample& right = other ? own_right : left;
  const Cut &lefts = left.cut, &rights = right.cut;
  const Index few = std::min(lefts.count, rights.count), many = std::max(lefts.count, rights.count);
  const bool doubled = other && p.wanted != Wanted::kValue && few < kChunks;
  const Index copies = doubled ? std::max<Index>(1, std::min(kChunks / few, many / few)) : 1;
  const Index left_copies = lefts.count <= rights.count ? copies : 1;
  const Index right_copies = lefts.count <= rights.count ? 1 : copies;
  Targets to_x(x, p.d, p.wanted, left_copies), to_y(right.side, p.d, p.wanted, right_copies);
  const std::vector<Pair> pairs =
      other ? pairs_between(lefts.count, rights.count, copies) : pairs_within(lefts.count);

  const double work = static_cast<double>(x.count) * right.side.count * (p.d + 16);
  threads = worthwhile_threads(threads, work, kPairWork);
  left.keep(threads);
  if (other) right.keep(threads);
  const double total = run_pairs(p, left, right, !other, pairs, to_x, to_y, threads);
  if (p.wanted == Wanted::kValue) return total;
  const auto finish = [&](Targets& targets, const Cut& cut, Index side_copies) {
    parallel(cut.count, threads, [&](std::size_t chunk, std::size_t) {
      const auto c = static_cast<Index>(chunk);
      targets.finish(p, side_copies, other ? 1.0f : 2.0f, cut.first(c), cut.end(c));
    });
  };
  finish(to_x, lefts, left_copies);
  if (other) finish(to_y, rights, right_copies);
  return total;
}

// Addresses of rows, weights, sums (float64) and gradient, the last two 0 when not wanted; count.
using SideArguments = std::array<std::uintptr_t, 5>;

Side as_side(const SideArguments& s) {
  return {reinterpret_cast<const float*>(s[0]), static_cast<Index>(s[4]),
          reinterpret_cast<const float*>(s[1]), reinterpret_cast<double*>(s[2]),
          reinterpret_cast<float*>(s[3])};
}

struct Form {
  PairKernel kind;
  std::vector<float> gammas;
  std::vector<int> squarings;
  float coef0;
  int degree;
};

double rbf_sum(const SideArguments& x, const std::optional<SideArguments>& y, Index d,
               std::uintptr_t centre, const Form& form, int wanted, bool leave_out,
               std::size_t threads) {
  const py::gil_scoped_release unlocked;
  const bool laplacian = form.kind == PairKernel::kLaplacian;
  const GemmShape panels =
      laplacian ? PYFEAT_KERNEL(rbf_distance_shape)() : PYFEAT_KERNEL(gemm_shape)();
  const Problem problem{{form.kind, static_cast<int>(form.gammas.size()), form.gammas.data(),
                         form.squarings.data(), form.coef0, form.degree},
                        d,
                        reinterpret_cast<const float*>(centre),
                        static_cast<Wanted>(wanted),
                        leave_out,
                        panels,
                        round_up(kBlock, panels.nr)};
  const Side left = as_side(x);
  if (!y) return run(problem, left, nullptr, threads);
  const Side right = as_side(*y);
  return run(problem, left, &right, threads);
}

}  // namespace

void bind_rbf_sum(py::module_& m) {
  m.def(
      "rbf_sum",
      [](const SideArguments& x, const std::optional<SideArguments>& y, Index d,
         std::uintptr_t centre, int kind, std::vector<float> gammas, std::vector<int> squarings,
         std::pair<float, int> power, int wanted, bool leave_out, std::size_t threads) {
        const Form form{static_cast<PairKernel>(kind), std::move(gammas), std::move(squarings),
                        power.first, power.second};
        return rbf_sum(x, y, d, centre, form, wanted, leave_out, threads);
      },
      py::arg("x"), py::arg("y"), py::arg("d"), py::arg("centre"), py::arg("kind"),
      py::arg("gammas"), py::arg("squarings"), py::arg("power"), py::arg("wanted"),
      py::arg("leave_out"), py::arg("threads"),
      "Sum of wx_i wy_j k(x_i, y_j); y None: x against itself. A side is the addresses of float32 "
      "rows\n"
      "and weights, float64 sums and float32 gradient (both zeros, added to), and the row count.");
}

}  // namespace pyfeat
