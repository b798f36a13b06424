// The rows of `rbf_sum` in blocks, centred and packed for the products of a tile.
#pragma once

#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/rbf_sum.h"
#include "../parallel.h"
#include "rbf_sum_rounds.h"

namespace pyfeat {

using Floats = std::vector<float>;

constexpr Index kKeptNumbers = 1 << 23;  // packed numbers of a side that are kept for a whole call

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
  bool turns() const { return gradient() && !laplacian(); }
};

// Rows of one side of a tile.
struct Block {
  Index first = 0, count = 0;
  Floats rows, columns;   // packed for the left and for the right of a product along d
  Floats turned;          // their features, for products along the rows
  Floats norms, weights;  // whole vectors
};

// How a side is cut and in which roles its blocks are multiplied. Few enough blocks are packed
// once, more of them whenever a chunk is taken up.
class Sample {
 public:
  Sample(const Problem& problem, const Side& rows, bool is_left, bool is_right)
      : side(rows), cut(rows.count, problem.d), p_(problem), left_(is_left), right_(is_right) {}

  const Side side;
  const Cut cut;

  void keep(std::size_t threads) {
    if (kept_numbers() > kKeptNumbers) return;
    kept_.resize(divide_up(side.count, cut.block()));
    std::vector<Floats> centred(threads);
    parallel(kept_.size(), threads, [&](std::size_t block, std::size_t thread) {
      prepare(static_cast<Index>(block) * cut.block(), left_, right_, centred[thread],
              kept_[block]);
    });
  }

  // The block that starts at row `first`, `own` where it had to be packed for that.
  const Block& take(Index first, bool as_left, Floats& centred, Block& own) const {
    if (!kept_.empty()) return kept_[first / cut.block()];
    prepare(first, as_left, !as_left, centred, own);
    return own;
  }

 private:
  Index kept_numbers() const {
    return side.count * p_.d * ((left_ ? 1 : 0) + (right_ ? 1 : 0) + (p_.turns() ? 1 : 0));
  }

  void prepare(Index first, bool as_left, bool as_right, Floats& centred, Block& block) const {
    const Index count = std::min(cut.block(), side.count - first);
    block.first = first;
    block.count = count;
    for (Floats* values : {&block.norms, &block.weights}) values->assign(p_.stride, 0.0f);
    std::copy_n(side.weights + first, count, block.weights.data());
    centred.resize(kBlock * p_.d);
    PYFEAT_KERNEL(rbf_centre)(side.data + first * p_.d, count, p_.d, p_.centre, centred.data(),
                              block.norms.data());
    const Rows rows{centred.data(), Item::kFloat32, p_.d, 1, nullptr};
    if (as_left) pack(rows, count, p_.d, p_.panels.mr, block.rows);
    if (as_right) pack(rows, count, p_.d, p_.panels.nr, block.columns);
    if (!p_.turns()) return;
    const Rows features{centred.data(), Item::kFloat32, 1, p_.d, nullptr};
    pack(features, p_.d, count, PYFEAT_KERNEL(gemm_shape)().nr, block.turned);
  }

  static void pack(const Rows& rows, Index count, Index k, int panel, Floats& out) {
    out.resize(packed_size(count, k, panel));
    PYFEAT_KERNEL(gemm_pack)(rows, count, k, panel, out.data());
  }

  const Problem& p_;
  const bool left_, right_;
  std::vector<Block> kept_;
};

}  // namespace pyfeat
