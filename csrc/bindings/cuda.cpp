// The Python face of the CUDA kernels: addresses and streams as integers, no torch ABI.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <utility>

#include "../cuda/device.h"
#include "../cuda/rbf_sum.h"

namespace py = pybind11;

namespace {

const float* floats(std::uintptr_t address) { return reinterpret_cast<const float*>(address); }
float* room(std::uintptr_t address) { return reinterpret_cast<float*>(address); }

void rbf_sum(const std::array<std::uintptr_t, 6>& sides, const std::array<std::uintptr_t, 3>& out,
             std::uintptr_t numbers, std::pair<int, int> form, std::array<long long, 4> shape,
             int within, std::uintptr_t stream) {
  pyfeat::cuda::rbf_sum(
      {floats(sides[0]), floats(sides[1]), floats(sides[2]), floats(sides[3]), floats(sides[4]),
       floats(sides[5]), floats(numbers), room(out[0]), room(out[1]), room(out[2]), form.first,
       form.second, within, shape[0], shape[1], shape[2], shape[3]},
      reinterpret_cast<void*>(stream));
}

}  // namespace

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
  m.def("rbf_sum", &rbf_sum, py::arg("sides"), py::arg("out"), py::arg("numbers"), py::arg("form"),
        py::arg("shape"), py::arg("within"), py::arg("stream"), "One slab: see cuda/rbf_sum.h.");
}
