// Packing and the product of packed panels, as in Goto and van de Geijn, Anatomy of
// high-performance matrix multiplication, ACM TOMS 34(3), 2008.
#include "gemm.h"

#include "convert.h"
#include "turn.h"

namespace pyfeat::PYFEAT_ISA {
namespace {

// kMr * kNv sums, kNv vectors of B and one number of A fill the registers: 32, or 16.
#if defined(PYFEAT_AVX512)
constexpr int kMr = 14;
#elif defined(PYFEAT_ISA_avx2)
constexpr int kMr = 6;
#else
constexpr int kMr = 4;
#endif
constexpr int kNv = 2;
constexpr int kNr = kNv * kWidth;
constexpr int kKc = 256;  // a panel of B, kNr * kKc * 4 bytes, stays in the first-level cache
constexpr int kMaxPanel = 32;
constexpr int kStrip = 64;  // along k, while packing
static_assert(kMr <= kMaxPanel && kNr <= kMaxPanel && kKc % kStrip == 0);

std::ptrdiff_t smaller(std::ptrdiff_t a, std::ptrdiff_t b) { return a < b ? a : b; }

// Rows of a panel on their way to being turned: `units` of 4 bytes each, a float or two bfloat16.
struct Strip {
  alignas(64) float unit[kMaxPanel][kStrip];
};

// line[i] = row `row` at depth k0 + i, or 0 past the last row.
void read_row(const Rows& rows, std::ptrdiff_t row, std::ptrdiff_t count, std::ptrdiff_t k0,
              int steps, float* line) {
  if (row >= count) {
    for (int i = 0; i < steps; ++i) line[i] = 0;
    return;
  }
  const float scale = rows.scales ? rows.scales[row] : 1.0f;
  const void* from = skip_items(rows.data, rows.item, row * rows.row_stride);
  if (rows.depth_stride == 1) {
    to_floats(skip_items(from, rows.item, k0), rows.item, steps, scale, line);
    return;
  }
  for (int i = 0; i < steps; ++i)
    to_floats(skip_items(from, rows.item, (k0 + i) * rows.depth_stride), rows.item, 1, scale,
              line + i);
}

// out[(i / As::kStep) * panel + r] = the unit at depth i of row r, for kStrip numbers of each of
// `panel` float32 rows, a multiple of kWidth.
template <typename As>
void write_turned(const float* rows, std::ptrdiff_t stride, int panel, float* out) {
  for (int r = 0; r < panel; r += kWidth)
    for (int i = 0; i < kStrip / As::kStep; i += kWidth) {
      Floats square[kWidth];
#pragma GCC unroll 16
      for (int j = 0; j < kWidth; ++j)
        square[j] = As::units(rows + (r + j) * stride + i * As::kStep);
      turn(square);
#pragma GCC unroll 16
      for (int j = 0; j < kWidth; ++j) store_floats(out + (i + j) * panel + r, square[j]);
    }
}

// out[i * panel + r] = strip.unit[r][i], i < units
void write_turned(const Strip& strip, int panel, int units, float* out) {
  for (int r = 0; r < panel; r += kWidth)
    for (int i = 0; i < units; i += kWidth) {
      Floats square[kWidth];
#pragma GCC unroll 16
      for (int j = 0; j < kWidth; ++j) square[j] = load_floats(strip.unit[r + j] + i);
      turn(square);
      const int lanes = panel - r < kWidth ? panel - r : kWidth;
      const int turned = units - i < kWidth ? units - i : kWidth;
      for (int j = 0; j < turned; ++j) store_some(out + (i + j) * panel + r, square[j], lanes);
    }
}

struct AsFloats {
  static constexpr int kStep = 1;  // along k, in a unit
  static void shrink(float*, int) {}
  static Floats units(const float* x) { return load_floats(x); }
};

struct AsBf16 {
  static constexpr int kStep = 2;
  // Rounds `steps` numbers to bfloat16 in their own place.
  static void shrink(float* line, int steps) {
    std::uint16_t low[kStrip];
    to_bfloat16s(line, steps, low);
    if (steps % 2) low[steps] = 0;
    std::memcpy(line, low, static_cast<std::size_t>((steps + 1) / 2) * sizeof(float));
  }
  static Floats units(const float* x) {
#ifdef PYFEAT_ISA_avx512bf16
    // Subnormal numbers become 0, which is what a product makes of them in any case.
    return reinterpret_cast<Floats>(_mm512_cvtne2ps_pbh(load_floats(x + kWidth), load_floats(x)));
#else
    std::uint16_t low[2 * kWidth];
    to_bfloat16s(x, 2 * kWidth, low);
    Floats pairs;
    std::memcpy(&pairs, low, sizeof pairs);
    return pairs;
#endif
  }
};

template <typename As>
void pack(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel, float* out) {
  Strip strip{};
  const bool plain =
      rows.item == Item::kFloat32 && !rows.scales && rows.depth_stride == 1 && panel % kWidth == 0;
  for (std::ptrdiff_t k0 = 0; k0 < k; k0 += kKc) {
    const std::ptrdiff_t end = smaller(k, k0 + kKc);
    for (std::ptrdiff_t first = 0; first < count; first += panel)
      for (std::ptrdiff_t at = k0; at < end; at += kStrip) {
        const int steps = static_cast<int>(smaller(end - at, kStrip));
        const int units = (steps + As::kStep - 1) / As::kStep;
        float* to = out;
        out += static_cast<std::ptrdiff_t>(units) * panel;
        if (plain && steps == kStrip && first + panel <= count) {
          const float* from = static_cast<const float*>(rows.data) + first * rows.row_stride + at;
          write_turned<As>(from, rows.row_stride, panel, to);
          continue;
        }
        for (int r = 0; r < panel; ++r) {
          read_row(rows, first + r, count, at, steps, strip.unit[r]);
          As::shrink(strip.unit[r], steps);
        }
        write_turned(strip, panel, units, to);
      }
  }
}

// One panel of float32 rows side by side in memory; whole vectors are written where what follows
// in the panel is written later.
float* copy_panel(const float* from, std::ptrdiff_t stride, std::ptrdiff_t steps, int there,
                  int panel, float* out) {
  for (std::ptrdiff_t step = 0; step < steps; ++step, from += stride, out += panel)
    for (int r = 0; r < panel; r += kWidth) {
      const int left = panel - r, real = there - r < 0 ? 0 : there - r;
      const Floats v = real < kWidth ? load_some(from + r, real) : load_floats(from + r);
      if (left < kWidth && step + 1 == steps)
        store_some(out + r, v, left);
      else
        store_floats(out + r, v);
    }
  return out;
}

// For rows side by side in memory: nothing has to be turned.
void pack_in_order(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel,
                   float* out) {
  const bool plain = rows.item == Item::kFloat32 && !rows.scales;
  for (std::ptrdiff_t k0 = 0; k0 < k; k0 += kKc) {
    const std::ptrdiff_t end = smaller(k, k0 + kKc);
    for (std::ptrdiff_t first = 0; first < count; first += panel) {
      const int there = static_cast<int>(smaller(count - first, panel));
      const void* column = skip_items(rows.data, rows.item, first);
      if (plain) {
        const void* from = skip_items(column, rows.item, k0 * rows.depth_stride);
        out = copy_panel(static_cast<const float*>(from), rows.depth_stride, end - k0, there, panel,
                         out);
        continue;
      }
      for (std::ptrdiff_t at = k0; at < end; ++at, out += panel) {
        to_floats(skip_items(column, rows.item, at * rows.depth_stride), rows.item, there, 1.0f,
                  out);
        for (int r = 0; r < panel; ++r) {
          if (r >= there) out[r] = 0;
          if (r < there && rows.scales) out[r] *= rows.scales[first + r];
        }
      }
    }
  }
}

struct Fp32 {
  using Number = float;
  static constexpr int kStep = 1;  // along k
  static Floats broadcast(const float* a) { return splat(*a); }
  static Floats load(const float* b) { return load_floats(b); }
  static Floats multiply_add(Floats a, Floats b, Floats sum) { return a * b + sum; }
};

struct Bf16 {
  using Number = std::uint16_t;
  static constexpr int kStep = 2;
  static Int32s broadcast(const std::uint16_t* a) {
    std::int32_t pair;
    std::memcpy(&pair, a, sizeof pair);
    return Int32s{} + pair;
  }
  static Int32s load(const std::uint16_t* b) {
    Int32s pairs;
    std::memcpy(&pairs, b, sizeof pairs);
    return pairs;
  }
  static Floats multiply_add(Int32s a, Int32s b, Floats sum) {
#ifdef PYFEAT_ISA_avx512bf16
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                     reinterpret_cast<__m512bh>(a),
                                                     reinterpret_cast<__m512bh>(b)));
#else
    const Int32s high = Int32s{} + static_cast<std::int32_t>(0xFFFF0000);
    sum += reinterpret_cast<Floats>(a & high) * reinterpret_cast<Floats>(b & high);
    return reinterpret_cast<Floats>(a << 16) * reinterpret_cast<Floats>(b << 16) + sum;
#endif
  }
};

// What of the memory wanted next every step asks for.
struct Asking {
  const char* at;
  std::ptrdiff_t bytes;
};

// sums = the product of the first kRows rows of a panel of A and a panel of B over `steps` steps.
template <typename Kind, int kRows>
inline __attribute__((always_inline)) void multiply(const typename Kind::Number* a,
                                                    const typename Kind::Number* b, int steps,
                                                    int panel, Asking ask,
                                                    Floats (&sums)[kRows][kNv]) {
  for (int step = 0; step < steps; ++step) {
    decltype(Kind::load(b)) right[kNv];
    __builtin_prefetch(ask.at + step * ask.bytes, 0, 2);
#pragma GCC unroll 2
    for (int v = 0; v < kNv; ++v)
      right[v] = Kind::load(b + (step * kNr + v * kWidth) * Kind::kStep);
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r) {
      const auto left = Kind::broadcast(a + (step * panel + r) * Kind::kStep);
#pragma GCC unroll 2
      for (int v = 0; v < kNv; ++v) sums[r][v] = Kind::multiply_add(left, right[v], sums[r][v]);
    }
  }
}

// kRows or kRows - 1 rows of a panel of A: what fills up the last one is not multiplied.
template <typename Kind, int kRows = kMr>
void panel_product(const typename Kind::Number* a, const typename Kind::Number* b, int steps,
                   std::ptrdiff_t rows, std::ptrdiff_t columns, bool add, float* c,
                   std::ptrdiff_t stride, int panel, Asking ask) {
  if constexpr (kRows > 2)
    if (rows <= kRows - 2)
      return panel_product<Kind, kRows - 2>(a, b, steps, rows, columns, add, c, stride, panel, ask);
  for (std::ptrdiff_t r = 0; r < rows; ++r) {
    __builtin_prefetch(c + r * stride, 1);
    __builtin_prefetch(c + r * stride + columns - 1, 1);
  }
  Floats sums[kRows][kNv] = {};
  multiply<Kind>(a, b, steps, panel, ask, sums);
  if (rows == kRows && columns == kNr) {
#pragma GCC unroll 14
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kNv; ++v) {
        float* to = c + r * stride + v * kWidth;
        store_floats(to, add ? load_floats(to) + sums[r][v] : sums[r][v]);
      }
    return;
  }
  float all[kRows][kNr];
  std::memcpy(all, sums, sizeof all);
  for (std::ptrdiff_t r = 0; r < rows; ++r)
    for (std::ptrdiff_t j = 0; j < columns; ++j)
      c[r * stride + j] = add ? c[r * stride + j] + all[r][j] : all[r][j];
}

template <typename Kind>
void product(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const typename Kind::Number* a,
             const typename Kind::Number* b, bool add, float* c, std::ptrdiff_t stride, int panel,
             Ahead next) {
  if (k == 0 && !add)
    for (std::ptrdiff_t i = 0; i < m; ++i)
      for (std::ptrdiff_t j = 0; j < n; ++j) c[i * stride + j] = 0;
  const std::ptrdiff_t rows = (m + panel - 1) / panel * panel, columns = (n + kNr - 1) / kNr * kNr;
  const std::ptrdiff_t all = rows / panel * (columns / kNr) * ((k + Kind::kStep - 1) / Kind::kStep);
  Asking ask{static_cast<const char*>(next.bytes ? next.data : a),
             all ? (next.bytes + all - 1) / all : 0};
  for (std::ptrdiff_t k0 = 0; k0 < k; k0 += kKc) {
    const std::ptrdiff_t deep = smaller(k - k0, kKc);
    const std::ptrdiff_t whole = (deep + Kind::kStep - 1) / Kind::kStep * Kind::kStep;
    const int steps = static_cast<int>(whole / Kind::kStep);
    for (std::ptrdiff_t j = 0; j < n; j += kNr)
      for (std::ptrdiff_t i = 0; i < m; i += panel, ask.at += steps * ask.bytes)
        panel_product<Kind>(a + rows * k0 + i * whole, b + columns * k0 + j * whole, steps,
                            smaller(m - i, panel), smaller(n - j, kNr), add || k0 > 0,
                            c + i * stride + j, stride, panel, ask);
  }
}

}  // namespace

GemmShape gemm_shape() { return {kMr, kNr, kKc}; }

void gemm_pack(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel, float* out) {
  if (rows.row_stride == 1 && rows.depth_stride != 1)
    pack_in_order(rows, count, k, panel, out);
  else
    pack<AsFloats>(rows, count, k, panel, out);
}

void gemm_pack_bf16(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel,
                    std::uint16_t* out) {
  // A unit is two numbers: the strips are turned as if they held floats, without doing arithmetic.
  pack<AsBf16>(rows, count, k, panel, reinterpret_cast<float*>(out));
}

void gemm_packed(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a,
                 const float* b, bool add, float* c, std::ptrdiff_t stride) {
  product<Fp32>(m, n, k, a, b, add, c, stride, kMr, {});
}

void gemm_packed_bf16(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const std::uint16_t* a,
                      const std::uint16_t* b, bool add, float* c, std::ptrdiff_t stride) {
  product<Bf16>(m, n, k, a, b, add, c, stride, kMr, {});
}

void gemm_packed_ahead(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a,
                       const float* b, bool add, float* c, std::ptrdiff_t stride, int panel,
                       Ahead next) {
  product<Fp32>(m, n, k, a, b, add, c, stride, panel, next);
}

void gemm_packed_ahead_bf16(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k,
                            const std::uint16_t* a, const std::uint16_t* b, bool add, float* c,
                            std::ptrdiff_t stride, int panel, Ahead next) {
  product<Bf16>(m, n, k, a, b, add, c, stride, panel, next);
}

}  // namespace pyfeat::PYFEAT_ISA
