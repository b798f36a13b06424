// The Python face of the CUDA kernels: addresses and streams as integers, no torch ABI.
#include <pybind11/pybind11.h>

#include "../cuda/device.h"
#include "../cuda/preprocess.h"

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
}
