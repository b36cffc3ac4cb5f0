// The launcher: picks the kernel for a dtype, window and D, and queues the plan's launches on a stream.
#include "st_gridpool.h"

#include "plan.h"

namespace gridpool {
namespace {

// The second bound is how many blocks must fit a multiprocessor: many short blocks hide the latency of memory best, as long as nothing
// spills. resident_blocks of plugins/nvrtc.py names the same.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr bool kNewer = true;
#else
constexpr bool kNewer = false;
#endif
constexpr int resident_blocks(int window, int vectors, int threads, bool squares) {
  const int resident = window != 2 ? threads : vectors == 2 ? 768 : squares && !kNewer ? 640 : 384;
  return resident < threads ? 1 : resident / threads;
}

template <class T, int ORDER, int K, int NV, int THREADS>
__global__ void __launch_bounds__(THREADS, resident_blocks(K, NV, THREADS, ORDER == 2))
    kernel(Args args, const int* plan, const Vec* x, Vec* scratch, Vec* out, int first_task) {
  run<T, ORDER, kScratch, K, NV>(args, plan, x, scratch, out, first_task);
}

using Kernel = void (*)(Args, const int*, const Vec*, Vec*, Vec*, int);

template <class T, int ORDER>
Kernel kernel_for(const Choice& choice) {
  if (choice.window == 2 && choice.vectors == 2) return kernel<T, ORDER, 2, 2, 128>;
  if (choice.window == 2) return choice.threads <= 128 ? kernel<T, ORDER, 2, 4, 128> : kernel<T, ORDER, 2, 4, 256>;
  return choice.window == 3 ? kernel<T, ORDER, 3, 1, kMaxThreads> : kernel<T, ORDER, 0, 1, 256>;
}

template <class T>
Kernel kernel_for(const Choice& choice, float order) {
  return order == 2.0f ? kernel_for<T, 2>(choice) : kernel_for<T, kAnyOrder>(choice);
}

}  // namespace

cudaError_t launch(const Plan& plan, const int* device_plan, DType dtype, int hidden, float temperature, float order, const void* x,
                   void* scratch, void* out, cudaStream_t stream) {
  const Args args = plan.args(hidden, dtype == DType::kFloat ? 4 : 8, temperature, order);
  const Choice choice = choose(args.window, args.vecs);
  const Kernel run = dtype == DType::kFloat  ? kernel_for<Float>(choice, order)
                     : dtype == DType::kHalf ? kernel_for<Half>(choice, order)
                                             : kernel_for<BFloat16>(choice, order);
  cudaFuncAttributes attributes;
  cudaError_t status = cudaFuncGetAttributes(&attributes, run);
  if (status != cudaSuccess) return status;

  // Launches overlap where the code that the GPU runs was compiled with the instructions that order them, and where the driver can also
  // capture such launches into a graph (CUDA 12.3).
  int driver = 0;
  status = cudaDriverGetVersion(&driver);
  if (status != cudaSuccess) return status;
  const bool overlaps = attributes.ptxVersion >= 90 && driver >= 12030;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(choice.threads, choice.groups);
  config.stream = stream;
  config.attrs = &overlap;
  for (int number = 0; number < plan.launches(); ++number) {
    const int first = plan.first_task(number);
    config.gridDim = dim3(plan.units(args, choice.groups), plan.first_task(number + 1) - first);
    config.numAttrs = number > 0 && overlaps;  // the first one must not begin before what wrote x has ended
    status = cudaLaunchKernelEx(&config, run, args, device_plan, static_cast<const Vec*>(x), static_cast<Vec*>(scratch),
                                static_cast<Vec*>(out), first);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace gridpool
