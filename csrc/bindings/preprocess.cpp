// Room and tail rows for `preprocess`. Arguments were checked in pyfeat/ops.
#include "preprocess.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "../cpu/dispatch.h"
#include "../cpu/preprocess.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

// Some 50 us of work, source and result counted: more than a thread takes to start.
constexpr double kPixelsPerThread = 5e4;

using Jobs = py::array_t<std::int64_t, py::array::c_style>;

// The last rows, copied with room after each, so that a kernel may read past the end of a row.
struct PaddedTail {
  PaddedTail(const std::uint8_t* image, std::ptrdiff_t stride, int begin, int end,
             std::ptrdiff_t readable, std::ptrdiff_t reach)
      : bytes(new std::uint8_t[static_cast<std::size_t>((end - begin) * reach)]()) {
    for (int row = begin; row < end; ++row)
      std::memcpy(bytes.get() + (row - begin) * reach, image + row * stride,
                  static_cast<std::size_t>(std::min(readable, reach)));
  }
  std::unique_ptr<std::uint8_t[]> bytes;
};

// Weights of one direction, and what they were made for.
struct Prepared {
  Prepared(const Direction& d, Filter f, bool flip, bool grouped)
      : direction(d), filter(f), mirrored(flip), takes_groups(grouped), weights(d, f, flip) {
    if (grouped) groups = GroupedWeights(weights.taps());
  }
  bool is(const Direction& d, Filter f, bool flip, bool grouped) const {
    return d.n_in == direction.n_in && d.n_out == direction.n_out && d.first == direction.first &&
           d.count == direction.count && f == filter && flip == mirrored && grouped == takes_groups;
  }
  Direction direction;
  Filter filter;
  bool mirrored, takes_groups;
  ResizeWeights weights;
  GroupedWeights groups;
};

// Images of a data set share a few sizes: a thread keeps what it used last. Of its own, so that
// there is no lock that a fork could leave closed.
std::shared_ptr<const Prepared> prepare(const Direction& direction, Filter filter, bool mirrored,
                                        bool grouped) {
  constexpr unsigned kKept = 8;
  thread_local std::shared_ptr<const Prepared> kept[kKept];
  thread_local unsigned next = 0;
  for (const auto& one : kept)
    if (one && one->is(direction, filter, mirrored, grouped)) return one;
  next = (next + 1) % kKept;
  return kept[next] = std::make_shared<const Prepared>(direction, filter, mirrored, grouped);
}

Direction direction(std::int64_t n_in, std::int64_t n_out, std::int64_t first, int crop) {
  return {n_in, n_out, std::max<std::int64_t>(first, 0),
          static_cast<int>(std::min<std::int64_t>(n_out, crop))};
}

template <typename Item>
void fill_planes(const Target& target, void* out) {
  const std::size_t plane = static_cast<std::size_t>(target.crop) * target.crop;
  for (std::size_t c = 0; c < 3; ++c) {
    const std::uint32_t byte = target.fill >> (8 * c) & 0xffu;
    std::fill_n(static_cast<Item*>(out) + c * plane, plane,
                static_cast<const Item*>(target.table)[256 * c + byte]);
  }
}

void fill_background(const Target& target, void* out) {
  if (target.item_bytes == 4)
    fill_planes<std::uint32_t>(target, out);
  else if (target.item_bytes == 2)
    fill_planes<std::uint16_t>(target, out);
  else
    fill_planes<std::uint8_t>(target, out);
}

}  // namespace

void preprocess_one(const Picture& picture, const Target& target, void* out) {
  const Direction down = direction(picture.h, picture.height, picture.top, target.crop);
  const Direction across = direction(picture.w, picture.width, picture.left, target.crop);
  const auto kept_wide =
      prepare(across, target.filter, target.hflip, PYFEAT_KERNEL(preprocess_takes_groups)());
  const auto kept_tall = prepare(down, target.filter, false, false);
  const ResizeWeights &wide = kept_wide->weights, &tall = kept_tall->weights;
  const std::ptrdiff_t stride = picture.stride;
  const std::uint8_t* corner = picture.image + tall.source * stride + wide.source * 3;
  const std::uint8_t* end = picture.image + (down.n_in - 1) * stride + across.n_in * 3;

  // Bytes from the start of a row that the kernel may touch; the last rows have fewer.
  const std::ptrdiff_t last = 3 * *std::max_element(wide.starts.begin(), wide.starts.end());
  const std::ptrdiff_t reach = last + std::max(6 * wide.pairs + 10, 64);
  const std::ptrdiff_t readable = (across.n_in - wide.source) * 3;
  int in_place = tall.length;
  while (in_place > 0 && end - (corner + (in_place - 1) * stride) < reach) --in_place;
  const PaddedTail tail(corner, stride, in_place, tall.length, readable, reach);

  const std::size_t row_bytes = 3 * plane_bytes(wide.count);
  const std::size_t rows = scratch_rows(tall.length), used = static_cast<std::size_t>(tall.length);
  const std::unique_ptr<std::uint8_t[]> scratch(new std::uint8_t[(rows + 1) * row_bytes]);
  std::memset(scratch.get() + used * row_bytes, 0, (rows - used) * row_bytes);

  const PixelRows pixels{corner, stride, tall.length, in_place, tail.bytes.get(), reach};
  const int before = static_cast<int>(std::max<std::int64_t>(-picture.left, 0));
  const Slot slot{out,
                  target.crop,
                  static_cast<int>(std::max<std::int64_t>(-picture.top, 0)),
                  target.hflip ? target.crop - before - wide.count : before,
                  target.table,
                  target.item_bytes};
  if (std::min(tall.count, wide.count) < target.crop) fill_background(target, out);
  PYFEAT_KERNEL(preprocess)(pixels, wide.taps(), kept_wide->groups.groups(), tall.taps(),
                            scratch.get(), slot);
}

namespace {

void preprocess(const Jobs& jobs, int crop, bool bicubic, bool hflip, std::uint32_t fill,
                std::uintptr_t table, int item_bytes, std::uintptr_t out, std::size_t threads) {
  const auto n = static_cast<std::size_t>(jobs.shape(0));
  const std::int64_t* rows = jobs.data();
  const Target target{crop, bicubic ? Filter::kBicubic : Filter::kBilinear, hflip,
                      fill, reinterpret_cast<const void*>(table),           item_bytes};
  std::uint8_t* slots = reinterpret_cast<std::uint8_t*>(out);
  const std::size_t slot_bytes = static_cast<std::size_t>(crop) * crop * 3 * item_bytes;
  double pixels = 0;
  for (std::size_t i = 0; i < n; ++i)
    pixels += static_cast<double>(rows[8 * i + 2]) * static_cast<double>(rows[8 * i + 3]) +
              static_cast<double>(crop) * crop;
  threads = worthwhile_threads(threads, pixels, kPixelsPerThread);
  const py::gil_scoped_release unlocked;
  parallel(n, threads, [&](std::size_t i, std::size_t) {
    const std::int64_t* row = rows + 8 * i;
    const Picture picture{reinterpret_cast<const std::uint8_t*>(row[0]),
                          row[1],
                          row[2],
                          row[3],
                          row[4],
                          row[5],
                          row[6],
                          row[7]};
    preprocess_one(picture, target, slots + i * slot_bytes);
  });
}

}  // namespace

void bind_preprocess(py::module_& m) {
  m.def("preprocess", &preprocess, py::arg("jobs"), py::arg("crop"), py::arg("bicubic"),
        py::arg("hflip"), py::arg("fill"), py::arg("table"), py::arg("item_bytes"), py::arg("out"),
        py::arg("threads"),
        "Rows of `jobs`: address, row stride, h, w, height, width, top, left. Resize RGB bytes (h, "
        "w, 3)\n"
        "to (height, width), cut `crop` rows and columns from (top, left), and write "
        "table[c][byte]\n"
        "to slot i of `out`. Pixels of a row must be adjacent.");
}

}  // namespace pyfeat
