// What the CUDA runtime knows about this machine.
#pragma once

#include <string>

namespace pyfeat::cuda {

struct DeviceReport {
  int count;           // devices that can be used now
  int runtime;         // e.g. 13000
  int driver;          // 0 when no driver is installed
  std::string reason;  // why count is 0; empty otherwise
};

// A machine without a driver is a finding, not an error.
DeviceReport report_devices();

}  // namespace pyfeat::cuda
