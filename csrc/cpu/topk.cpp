// Screening runs in float32 or bfloat16 products; what it cannot rule out is scored in float64.
#include "topk.h"

#include "convert.h"
#include "load_items.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr int kLanes64 = kWidth / 2;
constexpr int kPiece = 256;              // numbers converted at a time, where one pass is enough
constexpr std::ptrdiff_t kAhead = 2048;  // bytes of rows asked for before they are read
static_assert(kPiece % kWidth == 0);

using Doubles = double __attribute__((vector_size(kWidth * sizeof(float))));
using HalfFloats = float __attribute__((vector_size(kWidth / 2 * sizeof(float))));

Doubles load_doubles(const float* p) {
  HalfFloats v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Doubles);
}

double sum_of(Doubles v) {
  double sum = 0;
  for (int i = 0; i < kLanes64; ++i) sum += v[i];
  return sum;
}

// What rounding to bfloat16 takes away.
Floats bf16_rest(Floats x) {
  Int32s bits = reinterpret_cast<Int32s>(x);
  bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & static_cast<std::int32_t>(0xFFFF0000);
  return x - reinterpret_cast<Floats>(bits);
}

// Numbers [at, at + n) of a row as float32; those up to the next multiple of kWidth are 0. Points
// into the row itself where it can.
const float* piece_of(const void* row, Item item, std::ptrdiff_t at, int n, float scale,
                      float* room) {
  if (item == Item::kFloat32 && scale == 1.0f && n % kWidth == 0)
    return static_cast<const float*>(row) + at;
  to_floats(skip_items(row, item, at), item, n, scale, room);
  for (int i = n; i % kWidth; ++i) room[i] = 0;
  return room;
}

// Four sums of squares: enough to hide the latency of an addition.
struct Squares {
  Doubles sums[4] = {};
  Floats rest{};

  void add(const float* x, int n, bool with_rest) {
    int i = 0;
    for (; i + 2 * kWidth <= n; i += 2 * kWidth)
      for (int s = 0; s < 4; ++s) {
        const Doubles v = load_doubles(x + i + s * kLanes64);
        sums[s] += v * v;
      }
    for (; i < n; i += kLanes64) {
      const Doubles v = load_doubles(x + i);
      sums[0] += v * v;
    }
    if (with_rest)
      for (int j = 0; j < n; j += kWidth) {
        const Floats v = bf16_rest(load_floats(x + j));
        rest += v * v;
      }
  }
};

// As many rows at a time as there are registers for their sums.
template <int queries>
#if defined(PYFEAT_AVX512)
constexpr int kRows = 4;
#else
constexpr int kRows = queries == 1   ? 4
                      : queries == 2 ? 3
                                     : 2;
#endif

// What a group of rows is multiplied by.
struct Left {
  const float* x;
  std::ptrdiff_t stride, d;
};

// out[q * rows + r] = query q . row r; the squares of the rows follow if they are wanted. `ahead`
// bytes behind each number is one that will be wanted soon.
template <Item item, int queries, bool squares>
void dots(const Left& left, const std::uint8_t* const* y, const std::uint8_t* soon, float* out) {
  constexpr int rows = kRows<queries>, count = rows * (queries + (squares ? 1 : 0));
  Floats sums[(count + 3) / 4 * 4] = {};
  const auto add = [&](const Floats* x, const Floats* v) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < queries; ++q) sums[q * rows + r] += x[q] * v[r];
      if constexpr (squares) sums[queries * rows + r] += v[r] * v[r];
    }
  };
  Floats x[queries], v[rows];
  std::ptrdiff_t i = 0;
  for (; i + kWidth <= left.d; i += kWidth) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const std::uint8_t* from = y[r] + i * kItemBytes<item>;
      v[r] = load_items<item>(from);
    }
#pragma GCC unroll 4
    for (int q = 0; q < queries; ++q) x[q] = load_floats(left.x + q * left.stride + i);
    if constexpr (squares)
#pragma GCC unroll 4
      for (int line = 0; line < (rows * kWidth * kItemBytes<item> + 63) / 64; ++line)
        __builtin_prefetch(soon + i * rows * kItemBytes<item> + line * 64);
    add(x, v);
  }
  if (const int over = static_cast<int>(left.d - i)) {
    for (int r = 0; r < rows; ++r) v[r] = load_some_items<item>(y[r] + i * kItemBytes<item>, over);
    for (int q = 0; q < queries; ++q) x[q] = load_some(left.x + q * left.stride + i, over);
    add(x, v);
  }
#pragma GCC unroll 8
  for (int s = 0; s < count; s += 4) four_sums(sums + s, out + s);
}

// Some queries with all rows.
template <Item item, int queries, bool squares>
void dots_of_rows(const Left& left, const Rows& rows, std::ptrdiff_t count, float* squared,
                  float* c, std::ptrdiff_t stride) {
  constexpr int group = kRows<queries>;
  const std::ptrdiff_t step = rows.row_stride * kItemBytes<item>;
  const std::ptrdiff_t size = group * left.d * kItemBytes<item> + 1;
  const std::ptrdiff_t ahead = (1 + kAhead / size) * group * step;
  const auto* data = static_cast<const std::uint8_t*>(rows.data);
  for (std::ptrdiff_t row = 0; row < count; row += group) {
    const std::uint8_t* y[group];
    const int there = static_cast<int>(count - row < group ? count - row : group);
    // Past the last row, it once more.
    for (int r = 0; r < group; ++r) y[r] = data + (row + (r < there ? r : there - 1)) * step;
    float out[group * (queries + 1) + 3];
    dots<item, queries, squares>(left, y, y[0] + ahead, out);
    for (int r = 0; r < there; ++r) {
      for (int q = 0; q < queries; ++q) c[q * stride + row + r] = out[q * group + r];
      if (squares) squared[row + r] = out[queries * group + r];
    }
  }
}

// Rows are squared by the way where the first queries are multiplied.
template <Item item>
void dots_of_all(const Left& left, std::ptrdiff_t n, const Rows& rows, std::ptrdiff_t count,
                 float* squared, float* c, std::ptrdiff_t stride) {
  std::ptrdiff_t q = 0;
  const auto next = [&] { return Left{left.x + q * left.stride, left.stride, left.d}; };
  if (n >= 4)
    dots_of_rows<item, 4, true>(left, rows, count, squared, c, stride), q = 4;
  else if (n >= 2)
    dots_of_rows<item, 2, true>(left, rows, count, squared, c, stride), q = 2;
  else
    dots_of_rows<item, 1, true>(left, rows, count, squared, c, stride), q = 1;
  for (; q + 4 <= n; q += 4)
    dots_of_rows<item, 4, false>(next(), rows, count, nullptr, c + q * stride, stride);
  for (; q + 2 <= n; q += 2)
    dots_of_rows<item, 2, false>(next(), rows, count, nullptr, c + q * stride, stride);
  if (q < n) dots_of_rows<item, 1, false>(next(), rows, count, nullptr, c + q * stride, stride);
}

Floats root_of(Floats v) {
#if defined(PYFEAT_AVX512)
  return _mm512_sqrt_ps(v);
#elif defined(PYFEAT_ISA_avx2)
  return _mm256_sqrt_ps(v);
#else
  for (int i = 0; i < kWidth; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

Floats larger(Floats a, Floats b) { return a > b ? a : b; }

float largest(Floats v) {
  float most = 0;
  for (int i = 0; i < kWidth; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Bit i says that number i is not below the limit.
unsigned not_below(Floats v, float limit) {
#if defined(PYFEAT_AVX512)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), _mm512_set1_ps(limit), _CMP_NLT_UQ);
#elif defined(PYFEAT_ISA_avx2)
  return static_cast<unsigned>(_mm256_movemask_ps(
      _mm256_cmp_ps(reinterpret_cast<__m256>(v), _mm256_set1_ps(limit), _CMP_NLT_UQ)));
#else
  unsigned bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<unsigned>(!(v[i] < limit)) << i;
  return bits;
#endif
}

}  // namespace

void topk_norms(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t d, double* squared,
                float* rest) {
  float room[kPiece];
  for (std::ptrdiff_t row = 0; row < count; ++row) {
    const void* from = skip_items(rows.data, rows.item, row * rows.row_stride);
    Squares squares;
    for (std::ptrdiff_t at = 0; at < d; at += kPiece) {
      const int n = static_cast<int>(d - at < kPiece ? d - at : kPiece);
      const float* x = piece_of(from, rows.item, at, n, 1.0f, room);
      squares.add(x, (n + kWidth - 1) / kWidth * kWidth, rest != nullptr);
    }
    squared[row] =
        sum_of((squares.sums[0] + squares.sums[1]) + (squares.sums[2] + squares.sums[3]));
    if (rest) rest[row] = __builtin_sqrtf(pyfeat::PYFEAT_ISA::sum_of(squares.rest));
  }
}

void topk_dots(const float* queries, std::ptrdiff_t n, const Rows& rows, std::ptrdiff_t count,
               std::ptrdiff_t d, float* squared, float* c, std::ptrdiff_t stride) {
  const Left left{queries, d, d};
  switch (rows.item) {
    case Item::kFloat32:
      return dots_of_all<Item::kFloat32>(left, n, rows, count, squared, c, stride);
    case Item::kFloat16:
      return dots_of_all<Item::kFloat16>(left, n, rows, count, squared, c, stride);
    case Item::kBFloat16:
      return dots_of_all<Item::kBFloat16>(left, n, rows, count, squared, c, stride);
    case Item::kInt8:
      return dots_of_all<Item::kInt8>(left, n, rows, count, squared, c, stride);
  }
}

void topk_bounds(const float* squared, const float* scales, int count, std::ptrdiff_t d,
                 float error, Metric metric, const KeyBounds& out) {
  const float least = error < 0.01f ? 1e-30f : __builtin_inff();
  const float lost = static_cast<float>(d) * 3e-38f;
  Floats most_p{}, most_w{}, most_z{};
  for (int i = 0; i < count; i += kWidth) {
    const int n = count - i < kWidth ? count - i : kWidth;
    const Floats square = load_some(squared + i, n);
    const Floats scale = scales ? load_some(scales + i, n) : splat(1.0f);
    const Floats length = root_of(square), absolute = scale < 0 ? -scale : scale;
    const Floats norm = length * absolute;
    const Int32s usual = (square >= least) & (square <= 1e36f) & (absolute >= 1e-18f) &
                         (absolute <= 1e18f) & (norm >= 1e-18f) & (norm <= 1e18f);
    const Floats factor = metric == Metric::kCosine ? scale / norm : scale;
    const Floats size = metric == Metric::kCosine ? absolute / norm : absolute;
    const Floats half = metric == Metric::kL2 ? 0.5f * norm * norm : Floats{};
    const Floats tiny = size * lost * (1 + length) + 1e-38f;
    // A cosine errs by that of the norm too, which is below the error of a product.
    Floats w = size * length * ((metric == Metric::kCosine ? 2 : 1) * (1 + error) * 1.00001f);
    Floats z = half * ((error + 0x1p-20f) * 1.00001f) + tiny + 1e-37f;
    const Floats p = usual ? tiny : Floats{};
    most_p = larger(p, most_p);
    most_w = larger(usual ? w : Floats{}, most_w);
    most_z = larger(usual ? z : Floats{}, most_z);
    store_some(out.mul + i, factor, n);
    store_some(out.add + i, -half, n);
    store_some(out.p + i, p, n);
    store_some(out.w + i, usual ? w : splat(-1.0f), n);
    store_some(out.z + i, z, n);
  }
  out.most[0] = largest(most_p);
  out.most[1] = largest(most_w);
  out.most[2] = largest(most_z);
}

int topk_search(const float* c, const float* mul, const float* add, int count, float limit,
                std::int32_t* found) {
  int hits = 0, i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    unsigned bits =
        not_below(load_floats(c + i) * load_floats(mul + i) + load_floats(add + i), limit);
    for (; bits; bits &= bits - 1) found[hits++] = i + __builtin_ctz(bits);
  }
  for (; i < count; ++i)
    if (!(c[i] * mul[i] + add[i] < limit)) found[hits++] = i;
  return hits;
}

double topk_score(const float* query, double squared, const Rows& rows, std::ptrdiff_t row,
                  std::ptrdiff_t d, Metric metric) {
  const void* from = skip_items(rows.data, rows.item, row * rows.row_stride);
  const float scale = rows.scales ? rows.scales[row] : 1.0f;
  float room[kPiece], ends[kWidth] = {};
  Doubles product[2] = {}, own[2] = {};
  for (std::ptrdiff_t at = 0; at < d; at += kPiece) {
    const int n = static_cast<int>(d - at < kPiece ? d - at : kPiece);
    const float* y = piece_of(from, rows.item, at, n, scale, room);
    for (int i = 0; i < n; i += kWidth) {
      const float* x = query + at + i;
      if (n - i < kWidth) {
        std::memcpy(ends, x, static_cast<std::size_t>(n - i) * sizeof(float));
        x = ends;
      }
      for (int s = 0; s < 2; ++s) {
        const Doubles a = load_doubles(x + s * kLanes64), b = load_doubles(y + i + s * kLanes64);
        const Doubles gap = a - b;
        product[s] += metric == Metric::kL2 ? gap * gap : a * b;
        own[s] += b * b;
      }
    }
  }
  const double sum = sum_of(product[0] + product[1]), norm = sum_of(own[0] + own[1]);
  if (!(norm - norm == 0)) return norm - norm;  // NaN
  if (metric == Metric::kL2) return -sum;
  if (metric == Metric::kInner) return sum;
  return squared == 0 || norm == 0 ? 0 : sum / (__builtin_sqrt(squared) * __builtin_sqrt(norm));
}

}  // namespace pyfeat::PYFEAT_ISA
