// Softmax with a class in every line of memory: a vector holds one class of several rows, so that
// maximum, sum and weight of a row need no step across a vector.
#include "softmax_xent.h"

#include "convert.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

// Below this a probability counts as 0: its product with a weight would leave the normal numbers,
// which are slow, and it is far below the rounding of the largest one.
constexpr float kNothing = 1e-30f;

// A number of every row of a block.
struct Lanes {
  float at[kXentRows];
  Floats load(int i) const { return load_floats(at + i); }
  void store(int i, Floats v) { store_floats(at + i, v); }
};

Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Rows up to a whole vector, the added ones with weight 0 and logits 0.
int fill_up(const XentBlock& block, Lanes& weights) {
  const int rows = static_cast<int>(block.rows);
  const int whole = (rows + kWidth - 1) / kWidth * kWidth;
  for (int i = 0; i < whole; ++i)
    weights.at[i] = i < rows ? block.unit * (block.weights ? block.weights[i] : 1.0f) : 0.0f;
  for (int i = rows; i < whole; ++i)
    for (std::ptrdiff_t c = 0; c < block.classes; ++c) {
      block.logits[c * kXentStride + i] = 0;
      if (block.turns) block.turns[c * kXentStride + i] = 0;
    }
  return whole;
}

// Logits become exp(z - max), `scale` 1 / their sum.
double exponentials(const XentBlock& block, int whole, const Lanes& weights, Lanes& scale) {
  Lanes peak, own;
  for (std::ptrdiff_t c = 0; c < block.classes; ++c) {
    float* z = block.logits + c * kXentStride;
    const Floats intercept = splat(block.intercepts[c * block.step]);
    for (int i = 0; i < whole; i += kWidth) {
      const Floats with = load_floats(z + i) + intercept;
      store_floats(z + i, with);
      peak.store(i, c == 0 ? with : larger(with, peak.load(i)));
    }
  }
  for (int i = 0; i < block.rows; ++i) own.at[i] = block.logits[block.labels[i] * kXentStride + i];
  for (int i = 0; i < whole; i += kWidth) scale.store(i, Floats{});
  for (std::ptrdiff_t c = 0; c < block.classes; ++c) {
    float* z = block.logits + c * kXentStride;
    for (int i = 0; i < whole; i += kWidth) {
      const Floats e = exp_of(load_floats(z + i) - peak.load(i));
      store_floats(z + i, e);
      scale.store(i, scale.load(i) + e);
    }
  }
  double loss = 0;
  for (int i = 0; i < block.rows; ++i) {
    const double gap = static_cast<double>(peak.at[i]) - static_cast<double>(own.at[i]);
    loss += static_cast<double>(weights.at[i]) *
            (__builtin_log(static_cast<double>(scale.at[i])) + gap);
  }
  for (int i = 0; i < whole; i += kWidth) scale.store(i, 1.0f / scale.load(i));
  return loss;
}

// Turns become w p (t - sum p t); logits hold exp(z - max).
void turn(const XentBlock& block, int whole, const Lanes& weights, const Lanes& scale,
          double* turned) {
  Lanes mean;
  for (int i = 0; i < whole; i += kWidth) mean.store(i, Floats{});
  for (std::ptrdiff_t c = 0; c < block.classes; ++c) {
    float* t = block.turns + c * kXentStride;
    const float* e = block.logits + c * kXentStride;
    const Floats intercept = splat(block.turn_intercepts[c * block.step]);
    for (int i = 0; i < whole; i += kWidth) {
      const Floats with = load_floats(t + i) + intercept;
      store_floats(t + i, with);
      mean.store(i, mean.load(i) + load_floats(e + i) * scale.load(i) * with);
    }
  }
  for (std::ptrdiff_t c = 0; c < block.classes; ++c) {
    float* t = block.turns + c * kXentStride;
    const float* e = block.logits + c * kXentStride;
    Floats total{};
    for (int i = 0; i < whole; i += kWidth) {
      const Floats p = load_floats(e + i) * scale.load(i);
      const Floats s =
          (p < kNothing ? Floats{} : weights.load(i) * p) * (load_floats(t + i) - mean.load(i));
      store_floats(t + i, s);
      total += s;
    }
    turned[c] += static_cast<double>(sum_of(total));
  }
}

void softmax(const XentBlock& block, const XentSums& sums) {
  Lanes weights, scale;
  const int whole = fill_up(block, weights);
  *sums.loss += exponentials(block, whole, weights, scale);
  if (block.turns) turn(block, whole, weights, scale, sums.turned);
  for (std::ptrdiff_t c = 0; c < block.classes; ++c) {
    float* z = block.logits + c * kXentStride;
    Floats total{}, spread{};
    for (int i = 0; i < whole; i += kWidth) {
      const Floats p = load_floats(z + i) * scale.load(i);
      const Floats r = p < kNothing ? Floats{} : weights.load(i) * p;
      store_floats(z + i, r);
      total += r;
      spread += r * (1.0f - p);
    }
    sums.residuals[c] += static_cast<double>(sum_of(total));
    sums.spread[c] += static_cast<double>(sum_of(spread));
  }
  for (int i = 0; i < block.rows; ++i) {
    block.logits[block.labels[i] * kXentStride + i] -= weights.at[i];
    sums.residuals[block.labels[i]] -= static_cast<double>(weights.at[i]);
  }
}

// With m = z or -z, what the score says for the own label: loss = log(1 + exp(-|z|)) + max(-m, 0),
// where no exponential can overflow.
void sigmoid(const XentBlock& block, const XentSums& sums) {
  Lanes weights, sign, tail, wrong;
  const int whole = fill_up(block, weights);
  for (int i = 0; i < whole; ++i)
    sign.at[i] = i < block.rows && block.labels[i] == 1 ? 1.0f : -1.0f;
  Floats total{}, spread{}, turned{};
  for (int i = 0; i < whole; i += kWidth) {
    const Floats z = load_floats(block.logits + i) + *block.intercepts;
    const Floats margin = sign.load(i) * z;
    const Floats e = exp_of(z < 0.0f ? z : -z), scale = 1.0f / (1.0f + e);
    tail.store(i, e);
    wrong.store(i, margin < 0.0f ? -margin : Floats{});
    const Floats curved = weights.load(i) * (e < kNothing ? Floats{} : e * scale * scale);
    spread += curved;
    if (block.turns) {
      const Floats s = curved * (load_floats(block.turns + i) + *block.turn_intercepts);
      store_floats(block.turns + i, s);
      turned += s;
    }
    const Floats miss = (margin < 0.0f ? splat(1.0f) : e < kNothing ? Floats{} : e) * scale;
    const Floats r = -sign.load(i) * weights.load(i) * miss;
    store_floats(block.logits + i, r);
    total += r;
  }
  for (int i = 0; i < block.rows; ++i)
    *sums.loss +=
        static_cast<double>(weights.at[i]) *
        (__builtin_log1p(static_cast<double>(tail.at[i])) + static_cast<double>(wrong.at[i]));
  *sums.residuals += static_cast<double>(sum_of(total));
  *sums.spread += static_cast<double>(sum_of(spread));
  if (block.turns) *sums.turned += static_cast<double>(sum_of(turned));
}

Floats load_up_to(const float* x, std::ptrdiff_t n) {
  return n >= kWidth ? load_floats(x) : load_some(x, n > 0 ? static_cast<int>(n) : 0);
}

using Bits = std::uint32_t __attribute__((vector_size(kWidth * sizeof(float))));

// As to_bfloat16, in the upper halves; what is left in the lower ones does not matter.
Bits rounded(Floats x) {
  const Bits bits = reinterpret_cast<Bits>(x);
  return x == x ? bits + 0x7FFF + ((bits >> 16) & 1) : bits | 0x400000;
}

float dot(const float* a, const float* b, std::ptrdiff_t n) {
  Floats sums[4] = {};
  std::ptrdiff_t j = 0;
  for (; j + 4 * kWidth <= n; j += 4 * kWidth)
    for (int v = 0; v < 4; ++v)
      sums[v] = load_floats(a + j + v * kWidth) * load_floats(b + j + v * kWidth) + sums[v];
  for (; j < n; j += kWidth)
    sums[0] = load_up_to(a + j, n - j) * load_up_to(b + j, n - j) + sums[0];
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// A group of rows stays in the first-level cache for all outputs.
constexpr std::ptrdiff_t kGroup = 8;

}  // namespace

void xent_pack_columns(const float* x, std::ptrdiff_t first, std::ptrdiff_t count,
                       std::ptrdiff_t depth, std::ptrdiff_t d, GemmShape shape, float* out) {
  for (std::ptrdiff_t panel = 0; panel < d; panel += shape.nr) {
    float* to = out + panel * depth + first * shape.nr;
    for (std::ptrdiff_t i = 0; i < count; ++i)
      for (std::ptrdiff_t j = panel; j < panel + shape.nr; j += kWidth, to += kWidth)
        store_floats(to, j < d ? load_up_to(x + i * d + j, d - j) : Floats{});
  }
}

void xent_pack_columns_bf16(const float* x, std::ptrdiff_t first, std::ptrdiff_t count,
                            std::ptrdiff_t depth, std::ptrdiff_t d, GemmShape shape,
                            std::uint16_t* out) {
  const std::ptrdiff_t whole = (depth + 1) / 2 * 2;
  for (std::ptrdiff_t panel = 0; panel < d; panel += shape.nr) {
    std::uint16_t* to = out + panel * whole + first * shape.nr;
    for (std::ptrdiff_t i = 0; i < count; i += 2)
      for (std::ptrdiff_t j = panel; j < panel + shape.nr; j += kWidth, to += 2 * kWidth) {
        const float* from = x + i * d + j;
        const Floats upper = j < d ? load_up_to(from, d - j) : Floats{};
        const Floats lower = j < d && i + 1 < count ? load_up_to(from + d, d - j) : Floats{};
        const Bits pairs = (rounded(upper) >> 16) | (rounded(lower) & 0xFFFF0000u);
        std::memcpy(to, &pairs, sizeof pairs);
      }
  }
}

void xent_few_scores(const float* x, std::ptrdiff_t rows, std::ptrdiff_t d, const float* theta,
                     std::ptrdiff_t outputs, float* logits) {
  for (std::ptrdiff_t i = 0; i < rows; ++i)
    for (std::ptrdiff_t c = 0; c < outputs; ++c)
      logits[c * kXentStride + i] = dot(x + i * d, theta + c * (d + 1), d);
}

void xent_few_gradients(const float* x, std::ptrdiff_t rows, std::ptrdiff_t d, const float* logits,
                        std::ptrdiff_t outputs, bool add, float* gradient) {
  for (std::ptrdiff_t first = 0; first < rows; first += kGroup) {
    const int count = static_cast<int>(rows - first < kGroup ? rows - first : kGroup);
    for (std::ptrdiff_t c = 0; c < outputs; ++c)
      for (std::ptrdiff_t j = 0; j < d; j += kWidth) {
        const std::ptrdiff_t left = d - j;
        float* to = gradient + c * d + j;
        Floats sum = add || first > 0 ? load_up_to(to, left) : Floats{};
        for (int i = 0; i < count; ++i)
          sum =
              logits[c * kXentStride + first + i] * load_up_to(x + (first + i) * d + j, left) + sum;
        store_some(to, sum, left < kWidth ? static_cast<int>(left) : kWidth);
      }
  }
}

void xent_residuals(const XentBlock& block, const XentSums& sums) {
  if (block.classes == 1)
    sigmoid(block, sums);
  else
    softmax(block, sums);
}

void xent_rows(const void* data, Item item, const float* scales, const float* shift,
               std::ptrdiff_t rows, std::ptrdiff_t d, float* out) {
  for (std::ptrdiff_t i = 0; i < rows; ++i, out += d) {
    to_floats(skip_items(data, item, i * d), item, d, scales ? scales[i] : 1.0f, out);
    if (!shift) continue;
    std::ptrdiff_t j = 0;
    for (; j + kWidth <= d; j += kWidth)
      store_floats(out + j, load_floats(out + j) - load_floats(shift + j));
    for (; j < d; ++j) out[j] -= shift[j];
  }
}

void xent_merge(const float* part, std::ptrdiff_t n, double* sums) {
  for (std::ptrdiff_t i = 0; i < n; ++i) sums[i] += static_cast<double>(part[i]);
}

}  // namespace pyfeat::PYFEAT_ISA
