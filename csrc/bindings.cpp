// The Python face of the CPU kernels. Checks nothing that pyfeat/ops has checked already.
#include "bindings.h"

#include <pybind11/stl.h>

#include "cpu/dispatch.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels and the native half of the feature store.";
  m.def("isas", &pyfeat::supported_isas, "Instruction sets this CPU can run, best first.");
  m.def("isa", [] { return pyfeat::kernels().isa; }, "The instruction set in use.");
  m.def("set_isa", &pyfeat::set_isa, py::arg("name"), "Force one instruction set.");
  pyfeat::bind_ops(m);
  pyfeat::bind_store(m);
}
