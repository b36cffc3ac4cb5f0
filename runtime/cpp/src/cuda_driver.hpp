// Which NVIDIA GPU there is, asked of the driver alone, so that a machine without one gets an answer from no other library.
#pragma once

#include <string>

namespace gridpool {

/// name: of the first GPU; fault: why there is none, "" if there is one.
struct CudaDriver {
  std::string name, fault;
};

/// Asked once a process.
const CudaDriver& cuda_driver();

}  // namespace gridpool
