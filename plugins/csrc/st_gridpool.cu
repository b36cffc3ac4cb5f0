// The launcher: picks the kernel for a dtype, window and D, and queues the plan's launches on a stream.
#include "st_gridpool.h"

#include "plan.h"

namespace gridpool {
namespace {

// One block a multiprocessor named as the least: ptxas then uses the registers it needs instead of spilling for a second block.
template <class T, int ORDER, int K, int NV>
__global__ void __launch_bounds__((K == 2 && NV == 1) || K == 0 ? 256 : kMaxThreads, 1)
    kernel(Args args, const int* plan, const Vec* x, Vec* scratch, Vec* out, int first_task) {
  run<T, ORDER, kScratch, K, NV>(args, plan, x, scratch, out, first_task);
}

using Kernel = void (*)(Args, const int*, const Vec*, Vec*, Vec*, int);

template <class T, int ORDER>
Kernel kernel_for(const Choice& choice) {
  if (choice.window == 2) return choice.vectors == 2 ? kernel<T, ORDER, 2, 2> : kernel<T, ORDER, 2, 1>;
  return choice.window == 3 ? kernel<T, ORDER, 3, 1> : kernel<T, ORDER, 0, 1>;
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
  const dim3 block(choice.threads, choice.groups);
  const unsigned units = plan.units(args, choice.groups);
  for (int number = 0; number < plan.launches(); ++number) {
    const int first = plan.first_task(number);
    const dim3 grid(units, plan.first_task(number + 1) - first);
    run<<<grid, block, 0, stream>>>(args, device_plan, static_cast<const Vec*>(x), static_cast<Vec*>(scratch), static_cast<Vec*>(out),
                                    first);
    const cudaError_t status = cudaPeekAtLastError();
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace gridpool
