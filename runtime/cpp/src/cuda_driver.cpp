#include "backend.hpp"

#include "library.hpp"

namespace gridpool {
namespace {

CudaDriver ask() {
  try {
    const Library driver("libcuda.so.1");
    int count = 0, device = 0;
    char name[128] = "";
    const bool found = driver.function<int(unsigned)>("cuInit")(0) == 0 && driver.function<int(int*)>("cuDeviceGetCount")(&count) == 0 && count > 0;
    if (found && driver.function<int(int*, int)>("cuDeviceGet")(&device, 0) == 0 &&
        driver.function<int(char*, int, int)>("cuDeviceGetName")(name, sizeof name, device) == 0) {
      return {name, ""};
    }
  } catch (const EngineError&) {
    return {"", "no NVIDIA driver (libcuda.so.1 is not installed); use --device cpu or run on a machine with an NVIDIA GPU"};
  }
  return {"", "the NVIDIA driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"};
}

}  // namespace

const CudaDriver& cuda_driver() {
  static const CudaDriver driver = ask();
  return driver;
}

}  // namespace gridpool
