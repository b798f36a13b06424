// The Python face of the CPU kernels. Checks nothing that pyfeat/ops has checked already.
#include <pybind11/stl.h>

#include "../cpu/dispatch.h"
#include "bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels and the native half of the feature store.";
  m.def("isas", &pyfeat::supported_isas, "Instruction sets this CPU can run, best first.");
  m.def("isa", &pyfeat::isa_name, "The instruction set in use.");
  m.def("set_isa", &pyfeat::set_isa, py::arg("name"), "Force one instruction set.");
#define PYFEAT_BIND(op) pyfeat::bind_##op(m);
  PYFEAT_FOR_EACH_OP(PYFEAT_BIND)
#undef PYFEAT_BIND
  pyfeat::bind_store(m);
}
