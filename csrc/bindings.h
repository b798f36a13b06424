// Binding functions of the module `_core`, one per file bindings_*.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace pyfeat {
void bind_ops(pybind11::module_& m);
void bind_store(pybind11::module_& m);
}  // namespace pyfeat
