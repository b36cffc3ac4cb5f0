// StGridPool, the kernel body: Pyramid Temporal Gridding and Norm-based Spatial Pooling of [T, H, W, D] tokens in one pass.
//
// Compiles with nvcc, with NVRTC (no headers at all) and as host C++ (tests/plugins/host_kernel.cpp runs the same functions on a CPU).
// It knows nothing of TensorRT or Python; the tables that it follows are made by plugins/plan.py.
//
// How PTG is fused. An overwritten frame is a static function of the clip: tiles of pooled frames. A pass over the frames that are
// read pools them into `scratch`; windows of overwritten frames read their tiles there, a summary frame is never written.
// Not on the fly, because a cell is a mean of 3x3 tokens and levels nest. Tokens read through the caches at T=32, 27x27 and the
// default levels: 166,646 on the fly; with scratch 21,632 by windows and 35,200 by pooling. Bytes at D=3584 in bf16, a token being
// 7,168: DRAM reads 22,480 tokens (161 MB) and writes 5,408 (39 MB) whatever is done; scratch is 4,312 tokens (31 MB), written once.
// A pooled frame's windows run next to its pooling, so its second read is about one frame (5 MB) away, inside L2.
// DEPTH >= 0 selects on-the-fly summaries all the same: one launch and no scratch, for TensorRT's ahead-of-time plugins.
//
// A level needs the one before and is small: its launch alone would leave the GPU idle. So launches overlap (programmatic dependent
// launch), and windows that need no level stand first in each of them. A block pools one cell: larger tiles read fewer tokens twice, but
// many short blocks at work was measured to matter more ("On a GPU" of benchmarks/RESULTS.md).
//
// How NSP reads every byte once. A thread keeps its 16-byte vectors of all tokens of a window in registers between the norms and the
// weighted sum: window 2 and D=3584 in bf16 are 128 threads with 4 tokens x 4 vectors, 64 registers of data, 28 KB in flight a block.
// Windows above 3x3, and tokens of more than 1,024 vectors (512 where the window is 3x3), take the generic way, whose second read hits L1
// or L2.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cmath>
#include <cstring>
#endif

#include "pool.cuh"
#include "window.cuh"

namespace gridpool {

#if defined(__CUDACC__)
// The windows of a frame. K is 0 for the generic way.
template <class T, int ORDER, int DEPTH, int K, int NV>
__device__ void run_windows(const Clip<T, DEPTH>& clip, int frame, int version, Vec* out) {
  const Args& args = clip.args;
  const int thread = threadIdx.x, threads = blockDim.x, warps = threads / 32;
  const int windows = args.rows * args.columns;
  int window = blockIdx.x * blockDim.y + threadIdx.y;
  const bool idle = window >= windows;  // stays for the barrier
  if (idle) window = windows - 1;
  const int row = window / args.columns, column = window % args.columns;
  Vec* target = out + (static_cast<long long>(frame) * windows + window) * args.vecs;
  const int warp = thread / 32, lane = thread % 32;
  const float order = ORDER == 2 ? 2.0f : args.order;

  if constexpr (K > 0) {
    __shared__ float partial[kMaxThreads / 32][K * K];  // [warp of the block][token]
    Window<T, ORDER, DEPTH, K, NV> mine;
    mine.read(clip, version, row, column, thread, threads);
    GRIDPOOL_UNROLL
    for (int k = 0; k < K * K; ++k) mine.norm[k] = warp_total(mine.norm[k], order);
    if (warps > 1) {
      const int base = static_cast<int>(threadIdx.y) * warps;
      if (lane == 0)
        for (int k = 0; k < K * K; ++k) partial[base + warp][k] = mine.norm[k];
      __syncthreads();
      GRIDPOOL_UNROLL
      for (int k = 0; k < K * K; ++k) {
        float total = partial[base][k];
        for (int other = 1; other < warps; ++other) total = combine(total, partial[base + other][k], order);
        mine.norm[k] = total;
      }
    }
    if (!idle) mine.write(args, target, thread, threads);
  } else {
    __shared__ float logits[kMaxWindow * kMaxWindow];  // one window a block
    for (int k = warp; k < args.window * args.window; k += warps) {
      const float norm = warp_total(lane_norm<T, ORDER>(clip, version, row, column, k, lane), order);
      if (lane == 0) logits[k] = args.temperature * finish<ORDER>(norm, args);
    }
    __syncthreads();
    weighted_sum(clip, version, row, column, logits, target, thread, threads);
  }
}

// grid (units, tasks of this launch), block (threads a unit, units a block); threads a multiple of 32. A unit is a window or a cell.
template <class T, int ORDER, int DEPTH, int K, int NV>
__device__ void run(const Args& args, const int* plan, const Vec* x, Vec* scratch, Vec* out, int first_task) {
  if (DEPTH == kScratch) let_next_launch_begin();
  const int* task = plan + args.tasks_at + 4 * (first_task + static_cast<int>(blockIdx.y));
  const int index = task[1], version = task[2], first = blockIdx.x * blockDim.y;
  const bool pooling = DEPTH == kScratch && task[0];
  if (first < (pooling ? pool_cells(args, plan, index) : args.rows * args.columns)) {
    if (DEPTH == kScratch && version >= args.frames) wait_for_launch_before();  // reads scratch
    const Clip<T, DEPTH> clip{args, plan, x, scratch};
    if constexpr (DEPTH == kScratch) {
      const int cell = first + static_cast<int>(threadIdx.y);
      if (pooling && cell < pool_cells(args, plan, index)) pool_cell(clip, scratch, index, cell, threadIdx.x, blockDim.x);
    }
    if (!pooling) run_windows<T, ORDER, DEPTH, K, NV>(clip, index, version, out);
  }
  // One block of each launch waits, whatever it read, so that the last launch ends after all of them.
  if (DEPTH == kScratch && blockIdx.x == 0 && blockIdx.y == 0) wait_for_launch_before();
}
#endif

}  // namespace gridpool
