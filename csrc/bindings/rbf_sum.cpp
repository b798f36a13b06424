// `rbf_sum` over chunks of rows against chunks of rows: who works on which tile, and with what
// room.
//
// A round is a set of pairs of chunks in which no chunk occurs twice, so that threads add to sums
// and gradients of their own rows without locks. Rounds and chunks depend on the shape alone: the
// result has the same bits for any number of threads.
#include "../cpu/rbf_sum.h"

#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#ifdef PYFEAT_X86
#include <xmmintrin.h>
#endif

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"
#include "rbf_sum_rounds.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

using Floats = std::vector<float>;

constexpr double kPairWork = 2e5;  // multiplications that are worth a thread

struct Side {
  const float* data;
  Index count;
  const float* weights;
  double* sums;
  float* gradient;
};

struct Problem {
  PairForm form;
  Index d;
  const float* centre;
  Wanted wanted;
  bool leave_out;
  GemmShape panels;
  Index stride;

  bool gradient() const { return wanted == Wanted::kGradient; }
  bool euclidean() const { return form.kind == PairKernel::kGaussian; }
  bool laplacian() const { return form.kind == PairKernel::kLaplacian; }
};

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

// Rows of one side of a tile, centred, packed and weighed.
struct Block {
  Index first = 0, count = 0;
  Floats packed;  // rows, for products along d
  Floats turned;  // features, for products along the rows
  Floats norms, weights, sums, pulls;

  TileSide side() { return {count, norms.data(), weights.data(), sums.data(), pulls.data()}; }
};

// Where a tile adds what it found: `sums` and the others start at row 0 of the side.
struct Target {
  double* sums;
  double* pulls;
  float* gradient;
};

// One thread's room.
class Worker {
 public:
  explicit Worker(const Problem& problem) : p_(problem), centred_(kBlock * p_.d) {
    tile_.resize(round_up(kBlock, p_.panels.mr) * p_.stride);
    if (p_.gradient() && !p_.laplacian())
      coefficients_.resize(packed_size(kBlock, p_.stride, PYFEAT_KERNEL(gemm_shape)().mr));
  }

  // The sum over all rows of one chunk of the left side and one of the right; `same`: they are one.
  double run(const Side& left, const Cut& lefts, Index l, const Target& to_left, const Side& right,
             const Cut& rights, Index r, const Target& to_right, bool same) {
    const Index wide = rights.block(), tall = lefts.block();
    const Index count = divide_up(rights.end(r) - rights.first(r), wide);
    if (columns_.size() < static_cast<std::size_t>(count)) columns_.resize(count);
    for (Index j = 0; j < count; ++j) {
      const Index first = rights.first(r) + j * wide;
      prepare(columns_[j], right, first, std::min(wide, rights.end(r) - first), p_.panels.nr);
    }
    double total = 0;
    for (Index i = 0, first = lefts.first(l); first < lefts.end(l); ++i, first += tall) {
      prepare(rows_, left, first, std::min(tall, lefts.end(l) - first), p_.panels.mr);
      for (Index j = same ? i : 0; j < count; ++j) {
        const bool diagonal = same && i == j;
        const double sum = multiply(rows_, columns_[j], diagonal);
        total += same && !diagonal ? 2 * sum : sum;
        deliver(left, rows_, right, columns_[j], to_left, false);
        if (!diagonal) deliver(right, columns_[j], left, rows_, to_right, true);
      }
    }
    return total;
  }

 private:
  void prepare(Block& block, const Side& side, Index first, Index count, int panel) {
    const float* from = side.data + first * p_.d;
    block.first = first;
    block.count = count;
    block.packed.resize(packed_size(kBlock, p_.d, panel));
    for (Floats* values : {&block.norms, &block.weights, &block.sums, &block.pulls})
      values->assign(p_.stride, 0.0f);
    std::copy_n(side.weights + first, count, block.weights.data());
    PYFEAT_KERNEL(rbf_centre)(from, count, p_.d, p_.centre, centred_.data(), block.norms.data());
    const Rows rows{centred_.data(), Item::kFloat32, p_.d, 1, nullptr};
    PYFEAT_KERNEL(gemm_pack)(rows, count, p_.d, panel, block.packed.data());
    if (!p_.gradient() || p_.laplacian()) return;
    const int wide = PYFEAT_KERNEL(gemm_shape)().nr;
    block.turned.resize(packed_size(p_.d, kBlock, wide));
    const Rows features{centred_.data(), Item::kFloat32, 1, p_.d, nullptr};
    PYFEAT_KERNEL(gemm_pack)(features, p_.d, count, wide, block.turned.data());
  }

  // Leaves the coefficients in the tile and the sums in the blocks.
  double multiply(Block& rows, Block& columns, bool diagonal) {
    const Index m = round_up(rows.count, p_.panels.mr), n = round_up(columns.count, p_.panels.nr);
    if (p_.laplacian())
      PYFEAT_KERNEL(rbf_distances)(m, n, p_.d, rows.packed.data(), columns.packed.data(),
                                   tile_.data(), p_.stride);
    else
      PYFEAT_KERNEL(gemm_packed)(m, n, p_.d, rows.packed.data(), columns.packed.data(), false,
                                 tile_.data(), p_.stride);
    return PYFEAT_KERNEL(rbf_tile)(p_.form, rows.side(), columns.side(), tile_.data(), p_.stride,
                                   p_.wanted, diagonal, p_.leave_out);
  }

  // Adds what the tile says of the rows of `own` to them; `across`: they are its columns.
  void deliver(const Side& side, Block& own, const Side& other_side, const Block& other,
               const Target& to, bool across) {
    if (p_.wanted == Wanted::kValue) return;
    for (Index i = 0; i < own.count; ++i) {
      to.sums[own.first + i] += own.sums[i];
      own.sums[i] = 0;
      if (!p_.gradient()) continue;
      to.pulls[own.first + i] += own.pulls[i];
      own.pulls[i] = 0;
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
  Block rows_;
  std::vector<Block> columns_;
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

double run(const Problem& p, const Side& x, const Side* other, std::size_t threads) {
  const Side& y = other ? *other : x;
  const Cut lefts(x.count, p.d), rights(y.count, p.d);
  const Index few = std::min(lefts.count, rights.count), many = std::max(lefts.count, rights.count);
  const bool doubled = other && p.wanted != Wanted::kValue && few < kChunks;
  const Index copies = doubled ? std::max<Index>(1, std::min(kChunks / few, many / few)) : 1;
  const Index left_copies = lefts.count <= rights.count ? copies : 1;
  const Index right_copies = lefts.count <= rights.count ? 1 : copies;
  Targets to_x(x, p.d, p.wanted, left_copies), to_y(y, p.d, p.wanted, right_copies);
  Rounds rounds =
      other ? rounds_between(lefts.count, rights.count, copies) : rounds_within(lefts.count);
  if (p.wanted == Wanted::kValue) rounds = all_at_once(rounds);

  const double work = static_cast<double>(x.count) * y.count * (p.d + 16);
  threads = worthwhile_threads(threads, work, kPairWork * rounds.size());
  std::vector<std::unique_ptr<Worker>> workers(threads);
  double total = 0;
  for (const auto& round : rounds) {
    std::vector<double> values(round.size());
    parallel(round.size(), threads, [&](std::size_t task, std::size_t thread) {
      const NoSubnormals fast;
      const Pair& pair = round[task];
      if (!workers[thread]) workers[thread] = std::make_unique<Worker>(p);
      const bool same = !other && pair.left == pair.right;
      const Target left = to_x.copy(left_copies > 1 ? pair.copy : 0);
      const Target right = other ? to_y.copy(right_copies > 1 ? pair.copy : 0) : left;
      values[task] =
          workers[thread]->run(x, lefts, pair.left, left, y, rights, pair.right, right, same);
      if (!other && !same) values[task] *= 2;
    });
    for (const double value : values) total += value;
  }
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
