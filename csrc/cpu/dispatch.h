// Which instruction set the kernels run on: the best this CPU has, or the one a test forces.
#pragma once

#include <string>
#include <vector>

namespace pyfeat {

enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };

// The one in use. Read at every call, so that `set_isa` takes effect at once.
Isa current_isa();
const char* isa_name();

// Names of the instruction sets this CPU can run, best first.
std::vector<std::string> supported_isas();

// Forces one instruction set for the process. Throws std::invalid_argument when it cannot run here.
void set_isa(const std::string& name);

// The body of a kernel for the instruction set in use: PYFEAT_KERNEL(pool)(in, out)
#ifdef PYFEAT_X86
#define PYFEAT_KERNEL(name) \
  (::pyfeat::pick(&generic::name, &avx2::name, &avx512::name, &avx512bf16::name))
#else
#define PYFEAT_KERNEL(name) (&generic::name)
#endif

template <typename Function>
Function pick(Function generic, Function avx2, Function avx512, Function avx512bf16) {
  switch (current_isa()) {
    case Isa::kAvx512Bf16:
      return avx512bf16;
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx2:
      return avx2;
    default:
      return generic;
  }
}

}  // namespace pyfeat
