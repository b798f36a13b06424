#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#ifdef PYFEAT_X86
#include <cpuid.h>
#endif

namespace pyfeat {
namespace {

struct Level {
  Isa isa;
  const char* name;
  bool (*runs_here)();
};

bool always() { return true; }

#ifdef PYFEAT_X86
// Each asks for all that its kernels are compiled with. Not every compiler's __builtin_cpu_supports
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
bool has_avx512bf16() {
  unsigned a, b, c, d;
  return has_avx512() && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi") && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
         (a & (1u << 5));
}
#endif

// Best first.
const Level kLevels[] = {
#ifdef PYFEAT_X86
    {Isa::kAvx512Bf16, "avx512bf16", has_avx512bf16},
    {Isa::kAvx512, "avx512", has_avx512},
    {Isa::kAvx2, "avx2", has_avx2},
#endif
    {Isa::kGeneric, "generic", always},
};

const Level* best() {
  for (const Level& level : kLevels)
    if (level.runs_here()) return &level;
  return nullptr;  // not reached: generic always runs
}

std::atomic<const Level*>& current() {
  static std::atomic<const Level*> level{best()};
  return level;
}

}  // namespace

Isa current_isa() { return current().load(std::memory_order_relaxed)->isa; }

const char* isa_name() { return current().load(std::memory_order_relaxed)->name; }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Level& level : kLevels)
    if (level.runs_here()) names.emplace_back(level.name);
  return names;
}

void set_isa(const std::string& name) {
  std::string have;
  for (const Level& level : kLevels) {
    if (!level.runs_here()) continue;
    if (name == level.name) {
      current().store(&level, std::memory_order_relaxed);
      return;
    }
    have += std::string(have.empty() ? "" : ", ") + level.name;
  }
  throw std::invalid_argument("isa must be one of " + have + ", got " + name);
}

}  // namespace pyfeat
