// Room and tail rows for `preprocess`. Arguments were checked in pyfeat/ops.
#include "../cpu/preprocess.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "../cpu/dispatch.h"
#include "../cpu/resize_weights.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

using Pixels = py::array_t<std::uint8_t>;

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

void run_preprocess(const std::uint8_t* image, std::ptrdiff_t stride, const Direction& down,
                    const Direction& across, Filter filter, const void* table, int item_bytes,
                    void* out) {
  const ResizeWeights wide(across, filter), tall(down, filter);
  const std::uint8_t* corner = image + tall.source * stride + wide.source * 3;
  const std::uint8_t* end = image + (down.n_in - 1) * stride + across.n_in * 3;

  // Bytes from the start of a row that the kernel may touch; the last rows have fewer.
  const std::ptrdiff_t reach =
      3 * *std::max_element(wide.starts.begin(), wide.starts.end()) + 6 * wide.pairs + 10;
  const std::ptrdiff_t readable = (across.n_in - wide.source) * 3;
  int in_place = tall.length;
  while (in_place > 0 && end - (corner + (in_place - 1) * stride) < reach) --in_place;
  const PaddedTail tail(corner, stride, in_place, tall.length, readable, reach);

  const std::size_t row_bytes = 3 * plane_bytes(wide.count);
  const std::size_t rows = scratch_rows(tall.length), used = static_cast<std::size_t>(tall.length);
  const std::unique_ptr<std::uint8_t[]> scratch(new std::uint8_t[(rows + 1) * row_bytes]);
  std::memset(scratch.get() + used * row_bytes, 0, (rows - used) * row_bytes);

  const PixelRows pixels{corner, stride, tall.length, in_place, tail.bytes.get(), reach};
  PYFEAT_KERNEL(preprocess)(pixels, wide.taps(), tall.taps(), table, item_bytes, scratch.get(),
                            out);
}

void preprocess(const Pixels& image, std::int64_t height, std::int64_t width, std::int64_t top,
                std::int64_t left, int crop, bool bicubic, std::uintptr_t table, int item_bytes,
                std::uintptr_t out) {
  const std::uint8_t* first = image.data();
  const std::ptrdiff_t stride = image.strides(0);
  const Direction down{image.shape(0), height, top, crop};
  const Direction across{image.shape(1), width, left, crop};
  const py::gil_scoped_release unlocked;
  run_preprocess(first, stride, down, across, bicubic ? Filter::kBicubic : Filter::kBilinear,
                 reinterpret_cast<const void*>(table), item_bytes, reinterpret_cast<void*>(out));
}

}  // namespace

void bind_preprocess(py::module_& m) {
  m.def("preprocess", &preprocess, py::arg("image"), py::arg("height"), py::arg("width"),
        py::arg("top"), py::arg("left"), py::arg("crop"), py::arg("bicubic"), py::arg("table"),
        py::arg("item_bytes"), py::arg("out"),
        "Resize RGB bytes (h, w, 3) to (height, width), cut `crop` rows and columns from (top, "
        "left),\n"
        "and write table[c][byte] to address `out`. Pixels of a row must be adjacent.");
}

}  // namespace pyfeat
