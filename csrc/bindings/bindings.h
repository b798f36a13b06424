// Binding functions of the module `_core`: one per op, defined in <op>.cpp, and the store's.
#pragma once

#include <pybind11/pybind11.h>

#include "op_list.h"  // made by CMakeLists.txt: PYFEAT_FOR_EACH_OP

namespace pyfeat {

#define PYFEAT_BIND(op) void bind_##op(pybind11::module_& m);
PYFEAT_FOR_EACH_OP(PYFEAT_BIND)
#undef PYFEAT_BIND

void bind_store(pybind11::module_& m);

}  // namespace pyfeat
