// Antialiased resize of interleaved RGB bytes in exact integers, then a table look-up per channel.
//
// Across: lane i of a vector works on row i of a group, so that one pair of weights serves every
// lane; 16 bytes of a row are 4 taps and a third of one that is not used. Where bytes can be
// permuted and multiplied, a vector works on five pixels of a row instead (TapGroups). Down: whole
// planes of bytes, two rows (two taps) at a time. Both passes round to bytes, as Pillow does.
#include "preprocess.h"

#include "simd.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
#define PYFEAT_BYTE_PRODUCTS 1
#endif

namespace pyfeat::PYFEAT_ISA {
namespace {

constexpr int kFractionBits = 22;
constexpr int kFineBits = 11;
constexpr std::int32_t kHalf = 1 << (kFractionBits - 1);

#ifdef PYFEAT_MM
// Interleaved RGB bytes to pairs of 16-bit taps, (R R)(G G)(B B)(..): taps 0 and 1, or 2 and 3.
Vec taps01(Vec rgb) {
  return shuffle<0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1>(rgb);
}
Vec taps23(Vec rgb) {
  return shuffle<6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1>(rgb);
}
// Four pixels RGB. to RRRR GGGG BBBB ....
Vec planar(Vec rgb) { return shuffle<0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15>(rgb); }
#else
Vec taps01(Vec rgb) { return interleave_low8(interleave_low8(rgb, drop_bytes<3>(rgb)), zero()); }
Vec taps23(Vec rgb) { return taps01(drop_bytes<6>(rgb)); }
Vec planar(Vec rgb) {
  const Vec even_odd = interleave_low8(rgb, drop_bytes<8>(rgb));
  return interleave_low8(even_odd, drop_bytes<8>(even_odd));
}
#endif

// Sums of weight * byte in units of 2^-22, kept as two sums that 16-bit products can feed.
struct Sums {
  Vec coarse = zero();
  Vec fine = splat32(kHalf);

  void add(Vec taps, Vec coarse_weights, Vec fine_weights) {
    coarse = add32(coarse, pair_sums(taps, coarse_weights));
    fine = add32(fine, pair_sums(taps, fine_weights));
  }
  Vec rounded() const {
    return shift_right32<kFractionBits>(add32(shift_left32<kFineBits>(coarse), fine));
  }
};

// One output pixel of kLanes rows: (R, G, B, .) as int32 in every lane.
Vec pixel_across(const std::uint8_t* const* rows, const Taps& taps, int x) {
  const std::int32_t* w = taps.weights + static_cast<std::ptrdiff_t>(x) * taps.pairs * 2;
  std::ptrdiff_t offset = static_cast<std::ptrdiff_t>(taps.starts[x]) * 3;
  Sums sums;
  int pair = 0;
  for (; pair + 1 < taps.pairs; pair += 2, w += 4, offset += 12) {
    const Vec rgb = load_lanes(rows, offset);
    sums.add(taps01(rgb), splat32(w[0]), splat32(w[1]));
    sums.add(taps23(rgb), splat32(w[2]), splat32(w[3]));
  }
  if (pair < taps.pairs) {
    sums.add(taps01(load_lanes(rows, offset)), splat32(w[0]), splat32(w[1]));
  }
  return sums.rounded();
}

// Resizes kLanes rows across, to three planes of bytes each.
void rows_across(const std::uint8_t* const* rows, const Taps& taps, std::uint8_t* out) {
  const std::size_t plane = plane_bytes(taps.count);
  for (int x = 0; x < taps.count; x += 4) {
    const Vec left = narrow_to_int16(pixel_across(rows, taps, x), pixel_across(rows, taps, x + 1));
    const Vec right =
        narrow_to_int16(pixel_across(rows, taps, x + 2), pixel_across(rows, taps, x + 3));
    std::uint8_t pixels[kVecBytes];
    store(pixels, planar(narrow_to_uint8(left, right)));
    for (int lane = 0; lane < kLanes; ++lane)
      for (int c = 0; c < 3; ++c)
        std::memcpy(out + (lane * 3 + c) * plane + x, pixels + lane * 16 + c * 4, 4);
  }
}

#ifdef PYFEAT_BYTE_PRODUCTS
// As rows_across, five pixels of each row at a time.
void rows_across_grouped(const std::uint8_t* const* rows, const TapGroups& groups, int count,
                         std::uint8_t* out) {
  const std::size_t plane = plane_bytes(count);
  const Vec transposed = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const std::uint8_t* words = groups.words;
  for (int x = 0; x < count; x += 5) {
    const std::ptrdiff_t offset = groups.offsets[x / 5];
    Vec high[kLanes] = {}, middle[kLanes] = {}, low[kLanes];
    for (Vec& sum : low) sum = splat32(kHalf);
    for (int quad = 0; quad < groups.quads; ++quad, words += 4 * kVecBytes) {
      const Vec picked = load(words), w2 = load(words + kVecBytes),
                w1 = load(words + 2 * kVecBytes), w0 = load(words + 3 * kVecBytes);
      for (int lane = 0; lane < kLanes; ++lane) {
        const Vec taps = _mm512_permutexvar_epi8(picked, load(rows[lane] + offset));
        high[lane] = _mm512_dpbusd_epi32(high[lane], taps, w2);
        middle[lane] = _mm512_dpbusd_epi32(middle[lane], taps, w1);
        low[lane] = _mm512_dpbusd_epi32(low[lane], taps, w0);
      }
    }
    Vec sums[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const Vec upper = add32(shift_left32<8>(high[lane]), middle[lane]);
      sums[lane] = shift_right32<kFractionBits>(add32(shift_left32<8>(upper), low[lane]));
    }
    const Vec bytes =
        narrow_to_uint8(narrow_to_int16(sums[0], sums[1]), narrow_to_int16(sums[2], sums[3]));
    std::uint8_t pixels[kVecBytes + 8];
    store(pixels, _mm512_permutexvar_epi32(transposed, bytes));
    for (int lane = 0; lane < kLanes; ++lane)
      for (int c = 0; c < 3; ++c)
        std::memcpy(out + (lane * 3 + c) * plane + x, pixels + lane * 16 + c * 5, 8);
  }
}
#endif

// out[x] = rounded sum over taps of weight * rows[tap][x], x < n; n is a multiple of 64.
void row_down(const std::uint8_t* rows, std::size_t n, const std::int32_t* weights, int pairs,
              std::uint8_t* out) {
  for (std::size_t x = 0; x < n; x += kVecBytes) {
    Sums sums[4];
    for (int pair = 0; pair < pairs; ++pair) {
      const std::uint8_t* row = rows + static_cast<std::size_t>(pair) * 2 * n + x;
      const Vec upper = load(row), lower = load(row + n);
      const Vec low = interleave_low8(upper, lower), high = interleave_high8(upper, lower);
      const Vec coarse = splat32(weights[2 * pair]), fine = splat32(weights[2 * pair + 1]);
      sums[0].add(interleave_low8(low, zero()), coarse, fine);
      sums[1].add(interleave_high8(low, zero()), coarse, fine);
      sums[2].add(interleave_low8(high, zero()), coarse, fine);
      sums[3].add(interleave_high8(high, zero()), coarse, fine);
    }
    store(out + x, narrow_to_uint8(narrow_to_int16(sums[0].rounded(), sums[1].rounded()),
                                   narrow_to_int16(sums[2].rounded(), sums[3].rounded())));
  }
}

template <typename Item>
void look_up(const std::uint8_t* bytes, int n, const void* table, int row, void* out,
             std::size_t at) {
  const Item* items = static_cast<const Item*>(table) + 256 * row;
  Item* to = static_cast<Item*>(out) + at;
  for (int i = 0; i < n; ++i) to[i] = items[bytes[i]];
}

void write_row(const std::uint8_t* bytes, int n, const Slot& slot, int channel, int y) {
  const std::size_t side = static_cast<std::size_t>(slot.side);
  const std::size_t at = (static_cast<std::size_t>(channel) * side + y) * side + slot.left;
  if (slot.item_bytes == 4)
    look_up<std::uint32_t>(bytes, n, slot.table, channel, slot.out, at);
  else if (slot.item_bytes == 2)
    look_up<std::uint16_t>(bytes, n, slot.table, channel, slot.out, at);
  else
    look_up<std::uint8_t>(bytes, n, slot.table, channel, slot.out, at);
}

}  // namespace

bool preprocess_takes_groups() {
#ifdef PYFEAT_BYTE_PRODUCTS
  return true;
#else
  return false;
#endif
}

void preprocess(const PixelRows& rows, const Taps& across, [[maybe_unused]] const TapGroups& groups,
                const Taps& down, std::uint8_t* scratch, const Slot& slot) {
  const int width = across.count, height = down.count;
  const std::size_t plane = plane_bytes(width);
  for (int r = 0; r < rows.count; r += kLanes) {
    const std::uint8_t* lanes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = r + lane < rows.count ? r + lane : rows.count - 1;
      lanes[lane] = row < rows.in_place ? rows.image + row * rows.stride
                                        : rows.tail + (row - rows.in_place) * rows.tail_stride;
    }
#ifdef PYFEAT_BYTE_PRODUCTS
    if (groups.offsets) {
      rows_across_grouped(lanes, groups, width, scratch + r * plane * 3);
      continue;
    }
#endif
    rows_across(lanes, across, scratch + r * plane * 3);
  }
  std::uint8_t* line = scratch + scratch_rows(rows.count) * plane * 3;
  for (int y = 0; y < height; ++y) {
    row_down(scratch + down.starts[y] * plane * 3, plane * 3,
             down.weights + static_cast<std::size_t>(y) * down.pairs * 2, down.pairs, line);
    for (int c = 0; c < 3; ++c) write_row(line + c * plane, width, slot, c, slot.top + y);
  }
}

}  // namespace pyfeat::PYFEAT_ISA
