// The launcher: queues the plan's launches on a stream.
#include "st_gridpool.h"

#include "kernels.cuh"

namespace gridpool {

cudaError_t launch(const Plan& plan, const int* device_plan, DType dtype, int hidden, float temperature, float order, const void* x,
                   void* scratch, void* out, cudaStream_t stream) {
  int device = 0, driver = 0, shared = 0, multiprocessors = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess) status = cudaDriverGetVersion(&driver);
  if (status != cudaSuccess) return status;

  const Args args = plan.args(hidden, dtype == DType::kFloat ? 4 : 8, temperature, order);
  const Choice choice = choose(args, shared, multiprocessors);
  const bool squares = order == 2.0f;
  const Kernel run = dtype == DType::kFloat  ? kernel_for<Float>(choice, squares)
                     : dtype == DType::kHalf ? kernel_for<Half>(choice, squares)
                                             : kernel_for<BFloat16>(choice, squares);
  cudaFuncAttributes attributes;
  status = cudaFuncGetAttributes(&attributes, run);
  if (status == cudaSuccess) status = cudaFuncSetAttribute(run, cudaFuncAttributeMaxDynamicSharedMemorySize, choice.shared_bytes());
  if (status != cudaSuccess) return status;

  // Launches overlap where the code that the GPU runs was compiled with the instructions that order them, and where the driver can
  // capture such launches into a graph too (CUDA 12.3).
  const bool overlaps = attributes.ptxVersion >= 90 && driver >= 12030;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(choice.threads, choice.groups);
  config.dynamicSmemBytes = static_cast<size_t>(choice.shared_bytes());
  config.stream = stream;
  config.attrs = &overlap;
  for (int number = 0; number < plan.launches(); ++number) {
    const Launch launch = plan.launch(args, choice, number);
    config.gridDim = dim3(plan.blocks(launch, number));
    config.numAttrs = number > 0 && overlaps;  // the first must not begin before what writes x has ended
    status = cudaLaunchKernelEx(&config, run, args, device_plan, static_cast<const Vec*>(x), static_cast<Vec*>(scratch),
                                static_cast<Vec*>(out), launch);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace gridpool
