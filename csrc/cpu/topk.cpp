// Screening runs in float32 or bfloat16 products; what it cannot rule out is scored in float64.
#include "topk.h"

#include "convert.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr int kLanes64 = kWidth / 2;
constexpr int kPiece = 256;  // numbers converted at a time, where one pass is enough
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

template <int queries, int rows>
void dots(const float* x, std::ptrdiff_t x_stride, const float* const* y, std::ptrdiff_t d,
          float* c, std::ptrdiff_t stride) {
  Floats sums[queries][rows] = {};
  std::ptrdiff_t i = 0;
  for (; i + kWidth <= d; i += kWidth) {
    Floats right[rows];
    for (int r = 0; r < rows; ++r) right[r] = load_floats(y[r] + i);
#pragma GCC unroll 4
    for (int q = 0; q < queries; ++q) {
      const Floats left = load_floats(x + q * x_stride + i);
      for (int r = 0; r < rows; ++r) sums[q][r] += left * right[r];
    }
  }
  const int over = static_cast<int>(d - i);
  for (int q = 0; q < queries; ++q)
    for (int r = 0; r < rows; ++r) {
      if (over) sums[q][r] += load_some(x + q * x_stride + i, over) * load_some(y[r] + i, over);
      c[q * stride + r] = pyfeat::PYFEAT_ISA::sum_of(sums[q][r]);
    }
}

template <int rows>
void dots_of_all(const float* x, std::ptrdiff_t n, const float* const* y, std::ptrdiff_t d,
                 float* c, std::ptrdiff_t stride) {
  std::ptrdiff_t q = 0;
  for (; q + 4 <= n; q += 4) dots<4, rows>(x + q * d, d, y, d, c + q * stride, stride);
  for (; q < n; ++q) dots<1, rows>(x + q * d, d, y, d, c + q * stride, stride);
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
               std::ptrdiff_t d, float* scratch, float* c, std::ptrdiff_t stride) {
  for (std::ptrdiff_t row = 0; row < count; row += 2) {
    const int pair = row + 1 < count ? 2 : 1;
    const float* y[2];
    for (int r = 0; r < pair; ++r) {
      const void* from = skip_items(rows.data, rows.item, (row + r) * rows.row_stride);
      if (rows.item == Item::kFloat32) {
        y[r] = static_cast<const float*>(from);
      } else {
        to_floats(from, rows.item, d, 1.0f, scratch + r * d);
        y[r] = scratch + r * d;
      }
    }
    if (pair == 2)
      dots_of_all<2>(queries, n, y, d, c + row, stride);
    else
      dots_of_all<1>(queries, n, y, d, c + row, stride);
  }
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
