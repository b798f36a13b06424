// The Python face of the CUDA kernels: addresses and streams as integers, no torch ABI.
#include <pybind11/pybind11.h>

#include "../cuda/device.h"
#include "../cuda/preprocess.h"
#include "../cuda/topk.h"

namespace py = pybind11;

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
}
