// StGridPool, the kernel body: Pyramid Temporal Gridding and Norm-based Spatial Pooling of [T, H, W, D] tokens in one pass.
//
// Compiles with nvcc, with NVRTC (no headers at all) and as host C++ (tests/plugins/host_kernel.cpp runs the same functions on a CPU).
// It knows nothing of TensorRT or Python; the tables that it follows are made by plugins/plan.py.
//
// How PTG is fused. An overwritten frame is a static function of the clip: tiles of pooled frames. A small first pass over the frames
// that are read pools them into `scratch`; windows of overwritten frames read their tiles there, a summary frame is never written.
// Not on the fly, because a cell is a mean of 3x3 tokens and levels nest. Tokens read through the caches at T=32, 27x27 and the
// default levels: 166,646 on the fly; with scratch 21,632 by windows and 19,800 by pooling. Bytes at D=3584 in bf16, a token being
// 7,168: DRAM reads 22,480 tokens (161 MB) and writes 5,408 (39 MB) whatever is done; scratch is 4,312 tokens (31 MB), written
// once. A pooled frame's windows run next to its pooling, so its second read is about one frame (5 MB) away, inside L2.
// DEPTH >= 0 selects on-the-fly summaries all the same: one launch and no scratch, for TensorRT's ahead-of-time plugins.
//
// How NSP reads every byte once. A thread keeps its 16-byte vectors of all tokens of a window in registers between the norms and the
// weighted sum: window 2 and D=3584 in bf16 are 224 threads with 4 tokens x 2 vectors, 32 registers of data, 28 KB in flight a block.
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
constexpr int kTile = 4, kChunk = 32;  // of a pooled frame, the share of a block: cells down and across, vectors

// Passed by value. `*_at` are positions in the plan's ints.
struct Args {
  int frames, height, width, rows, columns, window, padding;
  int vecs;  // 16-byte vectors a token
  int tasks_at, versions_at, tiles_at, pools_at;
  float temperature, order, inverse_dim;
};

template <class T, int DEPTH>
struct Clip {
  const Args& args;
  const int* plan;
  const Vec* x;
  const Vec* scratch;

  // Where a token of a frame's version is: in the clip, in a pooled frame, or (on the fly) nowhere yet.
  struct Place {
    const Vec* base;  // null in the padding, and for a cell that has to be computed
    int pool, cy, cx;
  };

  GRIDPOOL_FN Place place(int version, int y, int column) const {
    if (version < args.frames)
      return {x + ((static_cast<long long>(version) * args.height + y) * args.width + column) * args.vecs, -1, 0, 0};
    const int* tiling = plan + args.versions_at + 4 * (version - args.frames);
    const int h = tiling[1], w = tiling[2], down = y / h, across = column / w;
    const int pool = plan[args.tiles_at + tiling[3] + down * tiling[0] + across];
    const int cy = y - down * h, cx = column - across * w;
    if (DEPTH != kScratch) return {nullptr, pool, cy, cx};
    const int first = plan[args.pools_at + 4 * pool + 3];
    return {scratch + (static_cast<long long>(first) + cy * w + cx) * args.vecs, -1, 0, 0};
  }

  // Token `k` of a window, row by row.
  GRIDPOOL_FN Place window_place(int version, int row, int column, int k) const {
    const int y = row * args.window + k / args.window - args.padding;
    const int x_ = column * args.window + k % args.window - args.padding;
    if (y < 0 || y >= args.height || x_ < 0 || x_ >= args.width) return {nullptr, -1, 0, 0};
    return place(version, y, x_);
  }

  GRIDPOOL_FN Vec token(const Place& at, int vec) const {
    if (at.base) return load(at.base + vec);
    if constexpr (DEPTH > 0)  // the host has refused a plan of more levels
      if (at.pool >= 0) return Clip<T, DEPTH - 1>{args, plan, x, scratch}.cell(at.pool, at.cy, at.cx, vec);
    return Vec{};
  }

  // One vector of a cell of a pooled frame: the mean of rows floor(cy*H/h) .. ceil((cy+1)*H/h), and columns likewise.
  GRIDPOOL_FN Vec cell(int pool, int cy, int cx, int vec) const {
    const int* entry = plan + args.pools_at + 4 * pool;
    const int version = entry[0], h = entry[1], w = entry[2];
    const int top = cy * args.height / h, bottom = ceil_div((cy + 1) * args.height, h);
    const int left = cx * args.width / w, right = ceil_div((cx + 1) * args.width, w);
    float sum[T::kLanes] = {};
    for (int y = top; y < bottom; ++y)
      for (int column = left; column < right; ++column) add<T>(sum, token(place(version, y, column), vec), 1.0f);
    const float count = static_cast<float>((bottom - top) * (right - left));
    for (int lane = 0; lane < T::kLanes; ++lane) sum[lane] /= count;
    return T::pack(sum);
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
      for (int n = 0; n < NV; ++n) token[k][n] = thread + n * threads < clip.args.vecs ? clip.token(at, thread + n * threads) : Vec{};
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

// Unit `unit` of a pooled frame: kTile x kTile cells, kChunk vectors of each. The tokens that neighbouring cells share, a border of
// one, come from L1 the second time: 9 x 9 tokens x 512 bytes are 41 KB a block.
template <class T, int DEPTH>
GRIDPOOL_FN void pool_unit(const Clip<T, DEPTH>& clip, Vec* scratch, int pool, int unit, int thread, int threads) {
  const Args& args = clip.args;
  const int* entry = clip.plan + args.pools_at + 4 * pool;
  const int h = entry[1], w = entry[2], chunks = ceil_div(args.vecs, kChunk), across = ceil_div(w, kTile);
  const int first_vec = unit % chunks * kChunk, tile = unit / chunks;
  const int top = tile / across * kTile, left = tile % across * kTile;
  const int vecs = smallest(kChunk, args.vecs - first_vec), rows = smallest(kTile, h - top), columns = smallest(kTile, w - left);
  for (int i = thread; i < rows * columns * vecs; i += threads) {
    const int vec = first_vec + i % vecs, cy = top + i / vecs / columns, cx = left + i / vecs % columns;
    scratch[(static_cast<long long>(entry[3]) + cy * w + cx) * args.vecs + vec] = clip.cell(pool, cy, cx, vec);
  }
}

GRIDPOOL_BOTH int pool_units(const Args& args, const int* plan, int pool) {
  const int* entry = plan + args.pools_at + 4 * pool;
  return ceil_div(entry[1], kTile) * ceil_div(entry[2], kTile) * ceil_div(args.vecs, kChunk);
}

#if defined(__CUDACC__)
// grid (units, tasks of this launch), block (threads a window, windows a block); threads a multiple of 32. K is 0 for the generic way.
template <class T, int ORDER, int DEPTH, int K, int NV>
__device__ void run(const Args& args, const int* plan, const Vec* x, Vec* scratch, Vec* out, int first_task) {
  const int* task = plan + args.tasks_at + 4 * (first_task + static_cast<int>(blockIdx.y));
  const int index = task[1], version = task[2];
  const Clip<T, DEPTH> clip{args, plan, x, scratch};
  const int thread = threadIdx.x, threads = blockDim.x, warps = threads / 32;
  if (DEPTH == kScratch && task[0]) {
    const int all = threads * static_cast<int>(blockDim.y), unit = blockIdx.x;
    if (unit < pool_units(args, plan, index)) pool_unit(clip, scratch, index, unit, thread + threads * static_cast<int>(threadIdx.y), all);
    return;
  }
  const int windows = args.rows * args.columns;
  if (static_cast<int>(blockIdx.x * blockDim.y) >= windows) return;  // the whole block
  int window = blockIdx.x * blockDim.y + threadIdx.y;
  const bool idle = window >= windows;  // stays for the barrier
  if (idle) window = windows - 1;
  const int row = window / args.columns, column = window % args.columns;
  Vec* target = out + (static_cast<long long>(index) * windows + window) * args.vecs;
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
#endif

}  // namespace gridpool
