// The kernels, and which of them a choice selects. Each kernels_*.cu compiles those of one dtype, so that they build in parallel.
#pragma once

#include "plan.h"

namespace gridpool {

using Kernel = void (*)(Args, const int*, const Vec*, Vec*, Vec*, Launch);

namespace {

template <class T, int ORDER, int K>
__global__ void __launch_bounds__(K == 3 ? kMaxThreads : 256)
    kernel(Args args, const int* plan, const Vec* x, Vec* scratch, Vec* out, Launch launch) {
  run<T, ORDER, kScratch, K, 1>(args, plan, x, scratch, out, launch);
}

// How many blocks must fit a multiprocessor, which bounds a thread's registers; the same in plugins/kernel/variants.py.
constexpr int resident_blocks(int threads) { return 112 * threads > 65536 ? 1 : 65536 / (112 * threads); }

template <class T, int ORDER, int NV, int STAGES, int THREADS>
__global__ void __launch_bounds__(THREADS, resident_blocks(THREADS))
    walking_kernel(Args args, const int* plan, const Vec* x, Vec* scratch, Vec* out, Launch launch) {
  run_walks<T, ORDER, NV, STAGES, THREADS>(args, plan, x, scratch, out, launch);
}

// The kernel for a block of kBlocks from I on.
template <class T, int ORDER, size_t I = 0>
Kernel walking_kernel_for(const Choice& choice) {
  if constexpr (I + 1 < sizeof kBlocks / sizeof *kBlocks)
    if (choice.threads != kBlocks[I]) return walking_kernel_for<T, ORDER, I + 1>(choice);
  if constexpr (kBlocks[I] <= kNarrowBlock)
    if (choice.vectors == 1) return walking_kernel<T, ORDER, 1, 2, kBlocks[I]>;
  return walking_kernel<T, ORDER, 2, 2, kBlocks[I]>;
}

template <class T, int ORDER>
Kernel kernel_of_order(const Choice& choice) {
  if (!choice.stages) return choice.window == 3 ? kernel<T, ORDER, 3> : kernel<T, ORDER, 0>;
  if (choice.stages == 1) return choice.threads == 384 ? walking_kernel<T, ORDER, 2, 1, 384> : walking_kernel<T, ORDER, 2, 1, 512>;
  return walking_kernel_for<T, ORDER>(choice);
}

}  // namespace

// squares: norms are of order 2.
template <class T>
Kernel kernel_for(const Choice& choice, bool squares) {
  return squares ? kernel_of_order<T, 2>(choice) : kernel_of_order<T, kAnyOrder>(choice);
}

extern template Kernel kernel_for<Float>(const Choice&, bool);
extern template Kernel kernel_for<Half>(const Choice&, bool);
extern template Kernel kernel_for<BFloat16>(const Choice&, bool);

}  // namespace gridpool
