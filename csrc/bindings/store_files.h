// What store.cpp and store_files.cpp share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace pyfeat {

// Names of files are bytes: what is no UTF-8 becomes a str as everywhere in Python.
pybind11::str as_path(const std::string& path);

void bind_store_files(pybind11::module_& m);

}  // namespace pyfeat
