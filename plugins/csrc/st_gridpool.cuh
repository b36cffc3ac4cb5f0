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
// Windows above 3x3, and D above 8192 bf16, take the generic way, whose second read hits L1 or L2.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cmath>
#include <cstring>
#endif

#include "vectors.cuh"

namespace gridpool {

constexpr int kScratch = -1;  // DEPTH: pooled frames lie in scratch
constexpr int kAnyOrder = 0;  // ORDER: taken from Args; 2 is compiled in
constexpr int kMaxWindow = 32;
constexpr int kMaxThreads = 512;

// Passed by value. `*_at` are positions in the plan's ints.
struct Args {
  int frames, height, width, rows, columns, window, padding;
  int vecs;  // 16-byte vectors a token
  int tasks_at, versions_at, tiles_at, pools_at;
  float temperature, order, inverse_dim;
};

// The tokens that a cell of a pooled frame is the mean of: rows floor(cy*H/h) .. ceil((cy+1)*H/h), and columns likewise.
struct Area {
  int version, top, bottom, left, right;

  GRIDPOOL_FN Area(const Args& args, const int* entry, int cy, int cx) {
    const int h = entry[1], w = entry[2];
    version = entry[0];
    top = cy * args.height / h, bottom = ceil_div((cy + 1) * args.height, h);
    left = cx * args.width / w, right = ceil_div((cx + 1) * args.width, w);
  }

  template <class T>
  GRIDPOOL_FN Vec mean(float (&sum)[T::kLanes]) const {
    const float count = static_cast<float>((bottom - top) * (right - left));
    GRIDPOOL_UNROLL
    for (int lane = 0; lane < T::kLanes; ++lane) sum[lane] /= count;
    return T::pack(sum);
  }
};

template <class T, int DEPTH>
struct Clip {
  const Args& args;
  const int* plan;
  const Vec* x;
  const Vec* scratch;

  // Where a token of a frame's version is: in the clip, in scratch, or (on the fly) nowhere yet.
  struct Place {
    const Vec* base;  // null in the padding, and for a cell that has to be computed
    int pool, cy, cx;
    bool written;  // in scratch
  };

  GRIDPOOL_FN Place place(int version, int y, int column) const {
    if (version < args.frames)
      return {x + ((static_cast<long long>(version) * args.height + y) * args.width + column) * args.vecs, -1, 0, 0, false};
    const int* tiling = plan + args.versions_at + 4 * (version - args.frames);
    const int h = tiling[1], w = tiling[2], down = y / h, across = column / w;
    const int pool = plan[args.tiles_at + tiling[3] + down * tiling[0] + across];
    const int cy = y - down * h, cx = column - across * w;
    if (DEPTH != kScratch) return {nullptr, pool, cy, cx, false};
    const int first = plan[args.pools_at + 4 * pool + 3];
    return {scratch + (static_cast<long long>(first) + cy * w + cx) * args.vecs, -1, 0, 0, true};
  }

  // Token `k` of a window, row by row.
  GRIDPOOL_FN Place window_place(int version, int row, int column, int k) const {
    const int y = row * args.window + k / args.window - args.padding;
    const int x_ = column * args.window + k % args.window - args.padding;
    if (y < 0 || y >= args.height || x_ < 0 || x_ >= args.width) return {nullptr, -1, 0, 0, false};
    return place(version, y, x_);
  }

  // LAST: nobody reads it again.
  template <bool LAST = false>
  GRIDPOOL_FN Vec token(const Place& at, int vec) const {
    if (at.base) return at.written ? load_written(at.base + vec) : LAST ? load_last(at.base + vec) : load(at.base + vec);
    if constexpr (DEPTH > 0)  // the host has refused a plan of more levels
      if (at.pool >= 0) return Clip<T, DEPTH - 1>{args, plan, x, scratch}.cell(at.pool, at.cy, at.cx, vec);
    return Vec{};
  }

  // On the fly: one vector of a cell of a pooled frame.
  GRIDPOOL_FN Vec cell(int pool, int cy, int cx, int vec) const {
    const Area area(args, plan + args.pools_at + 4 * pool, cy, cx);
    float sum[T::kLanes] = {};
    for (int y = area.top; y < area.bottom; ++y)
      for (int column = area.left; column < area.right; ++column) add<T>(sum, token(place(area.version, y, column), vec), 1.0f);
    return area.template mean<T>(sum);
  }
};

// Sum over lanes of |value|^p, or the largest |value| of order inf, on top of `norm`.
template <class T, int ORDER>
GRIDPOOL_FN float accumulate(float norm, Vec vec, float order) {
  float value[T::kLanes];
  T::unpack(vec, value);
  for (int lane = 0; lane < T::kLanes; ++lane) {
    const float magnitude = fabsf(value[lane]);
    if (ORDER == 2 || order == 2.0f)
      norm += magnitude * magnitude;
    else if (order == 1.0f)
      norm += magnitude;
    else if (infinite(order))
      norm = largest(norm, magnitude);
    else
      norm += powf(magnitude, order);
  }
  return norm;
}

GRIDPOOL_FN float combine(float a, float b, float order) { return infinite(order) ? largest(a, b) : a + b; }

// ||x||_p / D^(1/p) from what `accumulate` gathered.
template <int ORDER>
GRIDPOOL_FN float finish(float norm, const Args& args) {
  const float mean = norm * args.inverse_dim;
  if (ORDER == 2 || args.order == 2.0f) return sqrtf(mean);
  if (infinite(args.order)) return norm;
  return args.order == 1.0f ? mean : powf(mean, 1.0f / args.order);
}

// A thread's share of a window of K x K tokens, held in registers: vectors thread, thread + threads, ….
template <class T, int ORDER, int DEPTH, int K, int NV>
struct Window {
  static constexpr int kTokens = K * K;
  Vec token[kTokens][NV];
  float norm[kTokens];

  GRIDPOOL_FN void read(const Clip<T, DEPTH>& clip, int version, int row, int column, int thread, int threads) {
    GRIDPOOL_UNROLL
    for (int k = 0; k < kTokens; ++k) {
      const auto at = clip.window_place(version, row, column, k);
      GRIDPOOL_UNROLL
      for (int n = 0; n < NV; ++n) token[k][n] = thread + n * threads < clip.args.vecs ? clip.template token<DEPTH == kScratch>(at, thread + n * threads) : Vec{};
    }
    GRIDPOOL_UNROLL
    for (int k = 0; k < kTokens; ++k) {
      norm[k] = 0.0f;
      GRIDPOOL_UNROLL
      for (int n = 0; n < NV; ++n) norm[k] = accumulate<T, ORDER>(norm[k], token[k][n], clip.args.order);
    }
  }

  // `norm` holds the sums of all threads now.
  GRIDPOOL_FN void write(const Args& args, Vec* out, int thread, int threads) {
    GRIDPOOL_UNROLL
    for (int k = 0; k < kTokens; ++k) norm[k] = args.temperature * finish<ORDER>(norm[k], args);
    float top = norm[0], total = 0.0f;
    GRIDPOOL_UNROLL
    for (int k = 1; k < kTokens; ++k) top = largest(top, norm[k]);
    GRIDPOOL_UNROLL
    for (int k = 0; k < kTokens; ++k) total += norm[k] = expf(norm[k] - top);
    const float scale = 1.0f / total;
    GRIDPOOL_UNROLL
    for (int n = 0; n < NV; ++n) {
      float sum[T::kLanes] = {};
      GRIDPOOL_UNROLL
      for (int k = 0; k < kTokens; ++k) add<T>(sum, token[k][n], norm[k] * scale);
      const int vec = thread + n * threads;
      if (vec < args.vecs) store_streaming(out + vec, T::pack(sum));
    }
  }
};

// The generic way, any window and any D: the norm of a token by 32 lanes, then the weighted sum, tokens read again.
template <class T, int ORDER, int DEPTH>
GRIDPOOL_FN float lane_norm(const Clip<T, DEPTH>& clip, int version, int row, int column, int k, int lane) {
  const auto at = clip.window_place(version, row, column, k);
  float norm = 0.0f;
  for (int vec = lane; vec < clip.args.vecs; vec += 32) norm = accumulate<T, ORDER>(norm, clip.token(at, vec), clip.args.order);
  return norm;
}

template <class T, int DEPTH>
GRIDPOOL_FN void weighted_sum(const Clip<T, DEPTH>& clip, int version, int row, int column, const float* logits, Vec* out, int thread,
                              int threads) {
  const int tokens = clip.args.window * clip.args.window;
  float top = logits[0], total = 0.0f;
  for (int k = 1; k < tokens; ++k) top = largest(top, logits[k]);
  for (int k = 0; k < tokens; ++k) total += expf(logits[k] - top);
  for (int vec = thread; vec < clip.args.vecs; vec += threads) {
    float sum[T::kLanes] = {};
    for (int k = 0; k < tokens; ++k) add<T>(sum, clip.token(clip.window_place(version, row, column, k), vec), expf(logits[k] - top) / total);
    store_streaming(out + vec, T::pack(sum));
  }
}

// Three rows, or columns, of a summary from `first` on: which tile each is in, and where in it.
struct Three {
  int tile[3], at[3];
  GRIDPOOL_FN Three(int first, int size) {
    tile[0] = first / size, at[0] = first % size;
    GRIDPOOL_UNROLL
    for (int i = 1; i < 3; ++i) {
      const bool next = at[i - 1] + 1 == size;
      tile[i] = tile[i - 1] + next, at[i] = next ? 0 : at[i - 1] + 1;
    }
  }
};

// One vector of 3x3 tokens from (y, column) on, all loads in flight at once; zero outside the area.
template <class T>
GRIDPOOL_FN void load_nine(const Clip<T, kScratch>& clip, const Area& area, int y, int column, int vec, Vec (&nine)[9]) {
  const Args& args = clip.args;
  if (area.version < args.frames) {
    const Vec* first = clip.x + ((static_cast<long long>(area.version) * args.height + y) * args.width + column) * args.vecs + vec;
    GRIDPOOL_UNROLL
    for (int i = 0; i < 9; ++i) {
      const bool inside = y + i / 3 < area.bottom && column + i % 3 < area.right;
      nine[i] = inside ? load(first + (i / 3 * args.width + i % 3) * args.vecs) : Vec{};
    }
    return;
  }
  const int* tiling = clip.plan + args.versions_at + 4 * (area.version - args.frames);
  const int w = tiling[2];
  const Three rows(y, tiling[1]), columns(column, w);
  GRIDPOOL_UNROLL
  for (int i = 0; i < 9; ++i) {
    const int r = i / 3, c = i % 3;
    if (y + r >= area.bottom || column + c >= area.right) {
      nine[i] = Vec{};
      continue;
    }
    const int pool = clip.plan[args.tiles_at + tiling[3] + rows.tile[r] * tiling[0] + columns.tile[c]];
    const long long first = clip.plan[args.pools_at + 4 * pool + 3];
    nine[i] = load_written(clip.scratch + (first + rows.at[r] * w + columns.at[c]) * args.vecs + vec);
  }
}

// Cell `cell` of a pooled frame, by `threads` threads.
template <class T>
GRIDPOOL_FN void pool_cell(const Clip<T, kScratch>& clip, Vec* scratch, int pool, int cell, int thread, int threads) {
  const Args& args = clip.args;
  const int* entry = clip.plan + args.pools_at + 4 * pool;
  const Area area(args, entry, cell / entry[2], cell % entry[2]);
  for (int vec = thread; vec < args.vecs; vec += threads) {
    float sum[T::kLanes] = {};
    for (int y = area.top; y < area.bottom; y += 3)
      for (int column = area.left; column < area.right; column += 3) {
        Vec nine[9];
        load_nine(clip, area, y, column, vec, nine);
        GRIDPOOL_UNROLL
        for (int i = 0; i < 9; ++i) add<T>(sum, nine[i], 1.0f);
      }
    scratch[(static_cast<long long>(entry[3]) + cell) * args.vecs + vec] = area.template mean<T>(sum);
  }
}

GRIDPOOL_BOTH int pool_cells(const Args& args, const int* plan, int pool) {
  const int* entry = plan + args.pools_at + 4 * pool;
  return entry[1] * entry[2];
}

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
