// Which instruction set the kernels run on: the best this CPU has, or the one a test forces.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace pyfeat {

struct Kernels {
  const char* isa;
  decltype(&generic::preprocess) preprocess;
};

// The table in use. Read at every call, so that `set_isa` takes effect at once.
const Kernels& kernels();

// Names of the instruction sets this CPU can run, best first.
std::vector<std::string> supported_isas();

// Forces one instruction set for the process. Throws std::invalid_argument when it cannot run here.
void set_isa(const std::string& name);

}  // namespace pyfeat
