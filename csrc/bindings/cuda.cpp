// The Python face of the CUDA kernels: addresses and streams as integers, no torch ABI.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../cuda/device.h"
#include "../cuda/pool.h"
#include "../cuda/preprocess.h"
#include "../cuda/quantize_rows.h"
#include "../cuda/topk.h"

namespace py = pybind11;

namespace pyfeat::cuda {
namespace {

using Three = std::array<std::int64_t, 3>;  // items, channels, positions

void pool(std::uintptr_t x, int item, const Three& shape, const Three& strides, int method, float p,
          std::uintptr_t rows, std::int64_t row_stride, std::uintptr_t stream) {
  fold_maps({reinterpret_cast<const void*>(x), item, method, p, shape[0], shape[1], shape[2],
             strides[0], strides[1], strides[2], reinterpret_cast<float*>(rows), row_stride},
            reinterpret_cast<void*>(stream));
}

void quantize_rows(std::uintptr_t rows, int from, std::int64_t stride, std::int64_t n,
                   std::int64_t d, std::uintptr_t scales, bool l2, int to, std::uintptr_t out,
                   std::uintptr_t codes, std::uintptr_t stream) {
  store_rows({reinterpret_cast<const void*>(rows), from, stride, n, d,
              reinterpret_cast<const float*>(scales), l2, to, reinterpret_cast<void*>(out),
              reinterpret_cast<float*>(codes)},
             reinterpret_cast<void*>(stream));
}

}  // namespace
}  // namespace pyfeat::cuda

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels; there when a CUDA compiler was at build time.";
  m.def(
      "devices",
      [] {
        const pyfeat::cuda::DeviceReport r = pyfeat::cuda::report_devices();
        return py::dict(py::arg("count") = r.count, py::arg("runtime") = r.runtime,
                        py::arg("driver") = r.driver, py::arg("reason") = r.reason);
      },
      "Usable devices, runtime and driver version, and why there is none.");
  m.def(
      "preprocess",
      [](std::uintptr_t jobs, int n, int rows, int columns, int lines, int side,
         std::uintptr_t table, int item_bytes, std::uintptr_t stream) {
        pyfeat::cuda::preprocess(reinterpret_cast<const pyfeat::cuda::PreprocessJob*>(jobs), n,
                                 rows, columns, lines, side, reinterpret_cast<const void*>(table),
                                 item_bytes, reinterpret_cast<void*>(stream));
      },
      py::arg("jobs"), py::arg("n"), py::arg("rows"), py::arg("columns"), py::arg("lines"),
      py::arg("side"), py::arg("table"), py::arg("item_bytes"), py::arg("stream"),
      "Resize images; `jobs` holds rows of int64, the members of PreprocessJob.");
  m.def(
      "topk_keys",
      [](std::uintptr_t queries, std::uintptr_t base, int item, long long row_stride,
         std::uintptr_t mul, std::uintptr_t add, std::uintptr_t keys, long long n, long long m,
         long long d, std::uintptr_t stream) {
        const py::gil_scoped_release unlocked;
        const auto floats = [](std::uintptr_t at) { return reinterpret_cast<float*>(at); };
        pyfeat::cuda::topk_keys({floats(queries), reinterpret_cast<const void*>(base), item,
                                 row_stride, floats(mul), floats(add), floats(keys), n, m, d},
                                stream);
      },
      py::arg("queries"), py::arg("base"), py::arg("item"), py::arg("row_stride"), py::arg("mul"),
      py::arg("add"), py::arg("keys"), py::arg("n"), py::arg("m"), py::arg("d"), py::arg("stream"),
      "keys (n, m) = mul * (queries . rows) + add at device addresses, -inf where that is NaN.");
  m.def("pool", &pyfeat::cuda::pool, py::arg("x"), py::arg("item"), py::arg("shape"),
        py::arg("strides"), py::arg("method"), py::arg("p"), py::arg("rows"), py::arg("row_stride"),
        py::arg("stream"), "Fold (items, channels, positions) to float32 rows.");
  m.def("quantize_rows", &pyfeat::cuda::quantize_rows, py::arg("rows"), py::arg("source"),
        py::arg("stride"), py::arg("n"), py::arg("d"), py::arg("scales"), py::arg("l2"),
        py::arg("target"), py::arg("out"), py::arg("codes"), py::arg("stream"),
        "Rows in another type, multiplied by `scales` and normalised before where wanted.");
}
