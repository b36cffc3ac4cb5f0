// CUDA's execution model on a CPU, for small kernels: every thread of a block is a fiber, blocks run one after another.
//
// A fiber runs until a barrier or a shuffle. It goes on when all threads of its block, or its warp, wait at the same kind of point;
// where that can't happen any more the kernel would hang or is undefined on a GPU, and the program ends with a message. A warp runs as
// far as it gets before the next one does, so that what one warp writes too early for another shows.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __CUDACC__ 1
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static

struct Index {
  unsigned x, y, z;
};

namespace on_cpu {

enum class At { kRunning, kWarp, kBlock, kDone };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(128 << 10);
  At at = At::kRunning;
  Index thread{};
  float shuffled = 0;
};

inline std::vector<Fiber>* block = nullptr;
inline Fiber* current = nullptr;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline std::vector<unsigned char> dynamic_shared;
#define GRIDPOOL_DYNAMIC_SHARED static_cast<void*>(on_cpu::dynamic_shared.data())

inline void wait(At at) {
  current->at = at;
  swapcontext(&current->context, &scheduler);
}

inline void run_fiber() {
  body();
  current->at = At::kDone;
}

inline void release(size_t first, size_t count, At at) {
  for (size_t i = first; i < first + count; ++i)
    if ((*block)[i].at != at) return;
  for (size_t i = first; i < first + count; ++i) (*block)[i].at = At::kRunning;
}

inline void run_block(std::vector<Fiber>& fibers) {
  block = &fibers;
  for (Fiber& fiber : fibers) {
    fiber.at = At::kRunning;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (;;) {
    bool progress = false, done = true;
    for (size_t warp = 0; warp < fibers.size(); warp += 32) {  // each as far as it gets without the others
      for (bool ran = true; ran;) {
        ran = false;
        for (size_t i = warp; i < warp + 32; ++i) {
          if (fibers[i].at != At::kRunning) continue;
          current = &fibers[i];
          swapcontext(&scheduler, &current->context);
          ran = progress = true;
        }
        release(warp, 32, At::kWarp);
      }
      for (size_t i = warp; i < warp + 32; ++i) done = done && fibers[i].at == At::kDone;
    }
    if (done) return;
    if (!progress) {
      fprintf(stderr, "threads wait for one another for ever\n");
      abort();
    }
    release(0, fibers.size(), At::kBlock);
  }
}

}  // namespace on_cpu

inline Index blockIdx, blockDim, gridDim;
#define threadIdx (on_cpu::current->thread)

inline void __syncthreads() { on_cpu::wait(on_cpu::At::kBlock); }

// The value of thread `other` of the block, when all of the warp have come here.
inline float shuffled_from(size_t other, float value) {
  on_cpu::current->shuffled = value;
  on_cpu::wait(on_cpu::At::kWarp);
  const float theirs = (*on_cpu::block)[other].shuffled;
  on_cpu::wait(on_cpu::At::kWarp);  // nobody writes the next value before all have read this one
  return theirs;
}

inline size_t this_thread() { return static_cast<size_t>(on_cpu::current - on_cpu::block->data()); }

inline float __shfl_xor_sync(unsigned, float value, int distance) {
  return shuffled_from(this_thread() ^ static_cast<size_t>(distance), value);
}

inline float __shfl_sync(unsigned, float value, int lane) {
  return shuffled_from(this_thread() / 32 * 32 + static_cast<size_t>(lane), value);
}

inline void launch_on_cpu(Index grid, Index threads, size_t shared, std::function<void()> kernel) {
  gridDim = grid, blockDim = threads;
  on_cpu::body = std::move(kernel);
  on_cpu::dynamic_shared.assign(shared, 0xff);
  std::vector<on_cpu::Fiber> fibers(threads.x * threads.y);
  for (unsigned i = 0; i < fibers.size(); ++i) fibers[i].thread = {i % threads.x, i / threads.x, 0};
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = {x, y, 0};
      on_cpu::run_block(fibers);
    }
}
