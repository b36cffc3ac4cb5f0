// StGridPool, the kernel body: Pyramid Temporal Gridding and Norm-based Spatial Pooling of [T, H, W, D] tokens in one pass.
//
// Compiles with nvcc, with NVRTC (no headers at all) and as host C++ (tests/plugins/host_kernel.cpp runs the same functions on a
// CPU). It knows nothing of TensorRT or Python; the tables that it follows are made by plugins/plan.py.
//
// PTG: a summary frame is never written. What its tiles show is pooled into scratch, and its windows read it there. Computing it on
// the fly instead reads more tokens, because a cell is a mean of about 3x3 tokens and levels nest: at T=32, 27x27 and the default
// levels 166,646 through the caches; 56,832 with scratch if windows and cells each read the clip; 38,132 if one walk makes both
// (walk.cuh). DEPTH >= 0 selects on the fly: one launch and no scratch, for TensorRT's ahead-of-time plugins.
//
// NSP reads every byte once. Windows of 2x2: a walk keeps the tokens of a window in shared memory between the norms and the
// weighted sum. Windows of 3x3, and those of 2x2 with summaries on the fly: in registers (window.cuh). Other windows, and tokens
// of more vectors than these take, go the generic way, whose second read hits L1 or L2.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cmath>
#include <cstring>
#endif

#include "pool.cuh"
#include "walk.cuh"
#include "window.cuh"

namespace gridpool {

#if defined(__CUDACC__)
// What 32 lanes gathered, combined, in all of them.
GRIDPOOL_FN float warp_total(float value, float order) {
  GRIDPOOL_UNROLL
  for (int distance = 16; distance > 0; distance /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance), order);
  return value;
}

// The windows of a frame. K is 0 for the generic way.
template <class T, int ORDER, int DEPTH, int K, int NV>
__device__ void run_windows(const Clip<T, DEPTH>& clip, int frame, int version, int first, Vec* out) {
  const Args& args = clip.args;
  const int thread = threadIdx.x, threads = blockDim.x, warps = threads / 32;
  const int windows = args.rows * args.columns;
  int window = first + threadIdx.y;
  const bool idle = window >= windows;  // takes part in the barrier only
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

// grid: units of this launch's tasks; block: (threads per unit, units), threads a multiple of 32. A unit is a window or a cell.
template <class T, int ORDER, int DEPTH, int K, int NV>
__device__ void run(const Args& args, const int* plan, const Vec* x, Vec* scratch, Vec* out, const Launch& launch) {
  if (DEPTH == kScratch) let_next_launch_begin();
  int unit;
  const int* task = plan + args.tasks_at + 4 * launch.task_of(blockIdx.x, &unit);
  const int kind = task[0], index = task[1], version = task[2], first = unit * blockDim.y;
  const int windows = kind == kPool ? 0 : args.rows * args.columns;
  const int pool = kind == kPool ? index : task[3], cells = DEPTH != kScratch || kind == kWindows ? 0 : pool_cells(args, plan, pool);
  if (first < windows + cells) {
    if (DEPTH == kScratch && version >= args.frames) wait_for_launch_before();  // reads scratch
    const Clip<T, DEPTH> clip{args, plan, x, scratch};
    if (first < windows) {
      run_windows<T, ORDER, DEPTH, K, NV>(clip, index, version, first, out);
    } else if constexpr (DEPTH == kScratch) {  // a block with windows has no cells: where a task has both, a block is one unit
      const int cell = first - windows + static_cast<int>(threadIdx.y);
      if (cell < cells) pool_cell(clip, scratch, pool, cell, threadIdx.x, blockDim.x);
    }
  }
  // One block of each launch waits, whatever it read, so that the last launch ends after all of them.
  if (DEPTH == kScratch && blockIdx.x == 0) wait_for_launch_before();
}

// The softmax of four norms, from each thread's part of them, for all threads. Lanes take the norms in turns, so that four sums
// over a block cost little more than one. shared: not that of the call before.
template <int ORDER, int THREADS>
__device__ void weights_of(float (&norm)[4], const Args& args, float (*shared)[4]) {
  constexpr unsigned kAll = 0xffffffffu;
  constexpr int kWarps = THREADS / 32;
  const float order = ORDER == 2 ? 2.0f : args.order;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  GRIDPOOL_UNROLL
  for (int distance = 1; distance < 4; distance *= 2) {  // lane l keeps those of norm l % 4
    const bool odd = lane & distance;
    GRIDPOOL_UNROLL
    for (int i = 0; i < 2 / distance; ++i) {
      const float kept = odd ? norm[2 * i + 1] : norm[2 * i], given = odd ? norm[2 * i] : norm[2 * i + 1];
      norm[i] = combine(kept, __shfl_xor_sync(kAll, given, distance), order);
    }
  }
  float own = norm[0];
  GRIDPOOL_UNROLL
  for (int distance = 4; distance < 32; distance *= 2) own = combine(own, __shfl_xor_sync(kAll, own, distance), order);
  if (kWarps > 1) {
    if (lane < 4) shared[warp][lane] = own;
    __syncthreads();
    own = 0.0f;
    GRIDPOOL_UNROLL
    for (int first = 0; first < kWarps; first += 8) {
      const int other = first + lane / 4;
      if (other < kWarps) own = combine(own, shared[other][lane % 4], order);
    }
    GRIDPOOL_UNROLL
    for (int distance = 4; distance < 32; distance *= 2) own = combine(own, __shfl_xor_sync(kAll, own, distance), order);
  }
  own = args.temperature * finish<ORDER>(own, args);
  float top = largest(own, __shfl_xor_sync(kAll, own, 1));
  top = largest(top, __shfl_xor_sync(kAll, top, 2));
  own = expf(own - top);
  float total = own + __shfl_xor_sync(kAll, own, 1);
  total += __shfl_xor_sync(kAll, total, 2);
  own /= total;
  GRIDPOOL_UNROLL
  for (int k = 0; k < 4; ++k) norm[k] = __shfl_sync(kAll, own, k);
}

// The same where windows are 2x2: a block is a walk, or a cell of a pooled frame whose cells no walk can make.
template <class T, int ORDER, int NV, int STAGES, int THREADS>
__device__ void run_walks(const Args& args, const int* plan, const Vec* x, Vec* scratch, Vec* out, const Launch& launch) {
  using Share = Walk<T, ORDER, NV, STAGES, THREADS>;
  __shared__ float partial[2][THREADS / 32][4];
  __shared__ int places[Share::kPlaces];
  let_next_launch_begin();
  int unit;
  const int number = launch.task_of(blockIdx.x, &unit), thread = threadIdx.x;
  const Clip<T, kScratch> clip{args, plan, x, scratch};
  const Stretch at(args, plan, number, unit);
  if (at.frame < 0 && !walks(args, plan + args.pools_at + 4 * at.pool)) {
    if (unit < pool_cells(args, plan, at.pool)) {
      if (at.version >= args.frames) wait_for_launch_before();
      pool_cell(clip, scratch, at.pool, unit, thread, THREADS);
    }
  } else if (at.first < at.end) {
    Share mine(clip, at, scratch, out, places, dynamic_shared(), thread);
    if (at.version >= args.frames) {
      for (int token = thread; token < Share::kPlaces; token += THREADS) places[token] = mine.lookup(clip, token);
      __syncthreads();
      wait_for_launch_before();
    }
    for (int step = at.begin; step < at.begin + STAGES - 1; ++step) mine.fetch(step);
    for (int step = at.begin; step < at.end; ++step) {
      mine.fetch(step + STAGES - 1);
      mine.gather(step);
      if (mine.shows(step)) {
        weights_of<ORDER, THREADS>(mine.norm, args, partial[step & 1]);
        mine.write(step, mine.norm);
      }
      mine.next();
    }
  }
  if (blockIdx.x == 0) wait_for_launch_before();  // as in `run`
}
#endif

}  // namespace gridpool
