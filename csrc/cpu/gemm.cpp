// Packing and the product of packed panels, as in Goto and van de Geijn, Anatomy of
// high-performance matrix multiplication, ACM TOMS 34(3), 2008.
#include "gemm.h"

#include "convert.h"

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

// strip[r][i] = row first + r at depth k0 + i; rows past `count` are 0.
void read_strip(const Rows& rows, std::ptrdiff_t first, std::ptrdiff_t count, int panel,
                std::ptrdiff_t k0, int steps, float (*strip)[kStrip]) {
  for (int r = 0; r < panel; ++r) {
    const std::ptrdiff_t row = first + r;
    if (row >= count) {
      for (int i = 0; i < steps; ++i) strip[r][i] = 0;
      continue;
    }
    const float scale = rows.scales ? rows.scales[row] : 1.0f;
    const void* from = skip_items(rows.data, rows.item, row * rows.row_stride);
    if (rows.depth_stride == 1) {
      to_floats(skip_items(from, rows.item, k0), rows.item, steps, scale, strip[r]);
    } else {
      for (int i = 0; i < steps; ++i)
        to_floats(skip_items(from, rows.item, (k0 + i) * rows.depth_stride), rows.item, 1, scale,
                  &strip[r][i]);
    }
  }
}

// A panel whose rows lie side by side in memory: nothing has to be turned.
bool lies_in_order(const Rows& rows, std::ptrdiff_t first, std::ptrdiff_t count, int panel) {
  return rows.row_stride == 1 && !rows.scales && first + panel <= count;
}

struct PackFloat {
  float* out;
  void operator()(const float (*strip)[kStrip], int panel, int steps) {
    for (int i = 0; i < steps; ++i)
      for (int r = 0; r < panel; ++r) *out++ = strip[r][i];
  }
  void in_order(const void* from, Item item, int panel) {
    to_floats(from, item, panel, 1.0f, out);
    out += panel;
  }
};

struct PackBf16 {
  std::uint16_t* out;
  void operator()(const float (*strip)[kStrip], int panel, int steps) {
    for (int i = 0; i < steps; i += 2)
      for (int r = 0; r < panel; ++r) {
        *out++ = to_bfloat16(strip[r][i]);
        *out++ = i + 1 < steps ? to_bfloat16(strip[r][i + 1]) : std::uint16_t{0};
      }
  }
};

template <typename Pack>
void pack(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel, Pack write) {
  float strip[kMaxPanel][kStrip];
  for (std::ptrdiff_t k0 = 0; k0 < k; k0 += kKc) {
    const std::ptrdiff_t end = smaller(k, k0 + kKc);
    for (std::ptrdiff_t first = 0; first < count; first += panel)
      for (std::ptrdiff_t at = k0; at < end; at += kStrip) {
        const int steps = static_cast<int>(smaller(end - at, kStrip));
        read_strip(rows, first, count, panel, at, steps, strip);
        write(strip, panel, steps);
      }
  }
}

void pack_in_order(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel,
                   PackFloat write) {
  float strip[kMaxPanel][kStrip];
  for (std::ptrdiff_t k0 = 0; k0 < k; k0 += kKc) {
    const std::ptrdiff_t end = smaller(k, k0 + kKc);
    for (std::ptrdiff_t first = 0; first < count; first += panel) {
      const void* column = skip_items(rows.data, rows.item, first);
      for (std::ptrdiff_t at = k0; at < end; ++at) {
        if (lies_in_order(rows, first, count, panel)) {
          write.in_order(skip_items(column, rows.item, at * rows.depth_stride), rows.item, panel);
        } else {
          read_strip(rows, first, count, panel, at, 1, strip);
          write(strip, panel, 1);
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

// sums = the product of one panel of A and one of B over `steps` steps.
template <typename Kind>
inline __attribute__((always_inline)) void multiply(const typename Kind::Number* a,
                                                    const typename Kind::Number* b, int steps,
                                                    Floats (&sums)[kMr][kNv]) {
  for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 2
    for (int v = 0; v < kNv; ++v)
      __builtin_prefetch(b + (step + 16) * kNr * Kind::kStep + v * kWidth * Kind::kStep);
    decltype(Kind::load(b)) right[kNv];
#pragma GCC unroll 2
    for (int v = 0; v < kNv; ++v)
      right[v] = Kind::load(b + (step * kNr + v * kWidth) * Kind::kStep);
#pragma GCC unroll 14
    for (int r = 0; r < kMr; ++r) {
      const auto left = Kind::broadcast(a + (step * kMr + r) * Kind::kStep);
#pragma GCC unroll 2
      for (int v = 0; v < kNv; ++v) sums[r][v] = Kind::multiply_add(left, right[v], sums[r][v]);
    }
  }
}

template <typename Kind>
void panel_product(const typename Kind::Number* a, const typename Kind::Number* b, int steps,
                   std::ptrdiff_t rows, std::ptrdiff_t columns, bool add, float* c,
                   std::ptrdiff_t stride) {
  Floats sums[kMr][kNv] = {};
  multiply<Kind>(a, b, steps, sums);
  if (rows == kMr && columns == kNr) {
#pragma GCC unroll 14
    for (int r = 0; r < kMr; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kNv; ++v) {
        float* to = c + r * stride + v * kWidth;
        store_floats(to, add ? load_floats(to) + sums[r][v] : sums[r][v]);
      }
    return;
  }
  float all[kMr][kNr];
  std::memcpy(all, sums, sizeof all);
  for (std::ptrdiff_t r = 0; r < rows; ++r)
    for (std::ptrdiff_t j = 0; j < columns; ++j)
      c[r * stride + j] = add ? c[r * stride + j] + all[r][j] : all[r][j];
}

template <typename Kind>
void product(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const typename Kind::Number* a,
             const typename Kind::Number* b, bool add, float* c, std::ptrdiff_t stride) {
  if (k == 0 && !add)
    for (std::ptrdiff_t i = 0; i < m; ++i)
      for (std::ptrdiff_t j = 0; j < n; ++j) c[i * stride + j] = 0;
  const std::ptrdiff_t rows = (m + kMr - 1) / kMr * kMr, columns = (n + kNr - 1) / kNr * kNr;
  for (std::ptrdiff_t k0 = 0; k0 < k; k0 += kKc) {
    const std::ptrdiff_t deep = smaller(k - k0, kKc);
    const std::ptrdiff_t whole = (deep + Kind::kStep - 1) / Kind::kStep * Kind::kStep;
    const int steps = static_cast<int>(whole / Kind::kStep);
    for (std::ptrdiff_t j = 0; j < n; j += kNr)
      for (std::ptrdiff_t i = 0; i < m; i += kMr)
        panel_product<Kind>(a + rows * k0 + i * whole, b + columns * k0 + j * whole, steps,
                            smaller(m - i, kMr), smaller(n - j, kNr), add || k0 > 0,
                            c + i * stride + j, stride);
  }
}

}  // namespace

GemmShape gemm_shape() { return {kMr, kNr, kKc}; }

void gemm_pack(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel, float* out) {
  if (rows.row_stride == 1)
    pack_in_order(rows, count, k, panel, PackFloat{out});
  else
    pack(rows, count, k, panel, PackFloat{out});
}

void gemm_pack_bf16(const Rows& rows, std::ptrdiff_t count, std::ptrdiff_t k, int panel,
                    std::uint16_t* out) {
  pack(rows, count, k, panel, PackBf16{out});
}

void gemm_packed(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const float* a,
                 const float* b, bool add, float* c, std::ptrdiff_t stride) {
  product<Fp32>(m, n, k, a, b, add, c, stride);
}

void gemm_packed_bf16(std::ptrdiff_t m, std::ptrdiff_t n, std::ptrdiff_t k, const std::uint16_t* a,
                      const std::uint16_t* b, bool add, float* c, std::ptrdiff_t stride) {
  product<Bf16>(m, n, k, a, b, add, c, stride);
}

}  // namespace pyfeat::PYFEAT_ISA
