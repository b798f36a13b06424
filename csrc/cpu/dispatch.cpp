#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#ifdef PYFEAT_X86
#include <cpuid.h>
#endif

namespace pyfeat {
namespace {

#define PYFEAT_TABLE(isa) {#isa, isa::preprocess}

struct Level {
  Kernels table;
  bool (*runs_here)();
};

bool always() { return true; }

#ifdef PYFEAT_X86
// Each asks for all that its table is compiled with. Not every compiler's __builtin_cpu_supports
// knows "f16c".
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_avx2();
}
#endif

// Best first.
const Level kLevels[] = {
#ifdef PYFEAT_X86
    {PYFEAT_TABLE(avx512), has_avx512},
    {PYFEAT_TABLE(avx2), has_avx2},
#endif
    {PYFEAT_TABLE(generic), always},
};

const Kernels* best() {
  for (const Level& level : kLevels)
    if (level.runs_here()) return &level.table;
  return nullptr;  // not reached: generic always runs
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{best()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Level& level : kLevels)
    if (level.runs_here()) names.emplace_back(level.table.isa);
  return names;
}

void set_isa(const std::string& name) {
  std::string have;
  for (const Level& level : kLevels) {
    if (!level.runs_here()) continue;
    if (name == level.table.isa) {
      current().store(&level.table, std::memory_order_relaxed);
      return;
    }
    have += std::string(have.empty() ? "" : ", ") + level.table.isa;
  }
  throw std::invalid_argument("isa must be one of " + have + ", got " + name);
}

}  // namespace pyfeat
