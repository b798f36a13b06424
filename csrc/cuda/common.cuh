// Every CUDA call is checked here: an error becomes an exception that names the call.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace pyfeat::cuda {

inline void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

// After a launch: what the kernel's configuration got wrong, as an exception.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

constexpr int divide_up(long long n, long long by) { return static_cast<int>((n + by - 1) / by); }

}  // namespace pyfeat::cuda
