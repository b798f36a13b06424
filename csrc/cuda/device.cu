#include "common.cuh"
#include "device.h"

namespace pyfeat::cuda {

DeviceReport report_devices() {
  DeviceReport report{0, 0, 0, ""};
  check(cudaRuntimeGetVersion(&report.runtime), "cudaRuntimeGetVersion");
  const cudaError_t status = cudaGetDeviceCount(&report.count);
  if (status != cudaSuccess) {
    report.count = 0;
    report.reason = cudaGetErrorString(status);
    cudaGetLastError();  // the next call must not see this one's error
    return report;
  }
  check(cudaDriverGetVersion(&report.driver), "cudaDriverGetVersion");
  if (report.count == 0) report.reason = "no CUDA device";
  return report;
}

}  // namespace pyfeat::cuda
