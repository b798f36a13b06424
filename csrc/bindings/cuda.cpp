// The Python face of the CUDA kernels: addresses and streams as integers, no torch ABI.
#include <pybind11/pybind11.h>

#include "../cuda/device.h"

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
}
