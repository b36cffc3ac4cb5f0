// StGridPool, the kernel body: Pyramid Temporal Gridding and Norm-based Spatial Pooling of [T, H, W, D] tokens in one pass.
//
// Compiles with nvcc, with NVRTC (no headers at all) and as host C++ (tests/plugins/host_kernel.cpp runs the same functions on a CPU).
// It knows nothing of TensorRT or Python; the tables that it follows are made by plugins/plan.py.
//
// How PTG is fused. An overwritten frame is a static function of the clip: tiles of pooled frames. `scratch` holds the pooled frames
// of the level at hand, and windows of overwritten frames read their tiles from there; the summary frame itself is never written.
// Scratch instead of computing summaries on the fly, because a cell is a mean of up to 3x3 tokens and levels nest: at T=32, 27x27 and
// the default levels, on-the-fly windows read 113,000 tokens through the caches, this way it is 60,000, 19,600 of which stay on the SM
// (see benchmarks/gpu_plugin.py --bytes). Bytes at D=3584, bf16, a token being 7,168: the clip is read from DRAM once (23,328 tokens,
// 167.2 MB; 9 of 10 sampled frames' second reads are a frame apart, i.e. 5 MB, well inside L2), 5,408 tokens (38.8 MB) are written,
// and scratch is 4,312 tokens (30.9 MB) written and read once or twice, L2-resident on parts with 50 MB of it.
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
constexpr int kSegment = 2;  // cells that a block pools side by side, so that L1 serves the columns they share

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

  // One vector of a token of a frame's version: an original one, or a tile of a summary.
  GRIDPOOL_FN Vec token(int version, int y, int column, int vec) const {
    if (version < args.frames) return load(x + offset(version, y, column) + vec);
    const int* tiling = plan + args.versions_at + 4 * (version - args.frames);
    const int h = tiling[1], w = tiling[2];
    const int pool = plan[args.tiles_at + tiling[3] + (y / h) * tiling[0] + column / w];
    const int cy = y % h, cx = column % w;
    if constexpr (DEPTH == kScratch) {
      const int* entry = plan + args.pools_at + 4 * pool;
      return load(scratch + (static_cast<long long>(entry[3]) + cy * w + cx) * args.vecs + vec);
    } else if constexpr (DEPTH > 0) {
      return Clip<T, DEPTH - 1>{args, plan, x, scratch}.cell(pool, cy, cx, vec);
    } else {
      return Vec{};  // the host has refused a plan of more levels
    }
  }

  // One vector of a cell of a pooled frame: the mean of rows floor(cy*H/h) .. ceil((cy+1)*H/h), and columns likewise.
  GRIDPOOL_FN Vec cell(int pool, int cy, int cx, int vec) const {
    const int* entry = plan + args.pools_at + 4 * pool;
    const int version = entry[0], h = entry[1], w = entry[2];
    const int top = cy * args.height / h, bottom = ((cy + 1) * args.height + h - 1) / h;
    const int left = cx * args.width / w, right = ((cx + 1) * args.width + w - 1) / w;
    float sum[T::kLanes] = {};
    for (int y = top; y < bottom; ++y)
      for (int column = left; column < right; ++column) add<T>(sum, token(version, y, column, vec), 1.0f);
    const float count = static_cast<float>((bottom - top) * (right - left));
    for (int lane = 0; lane < T::kLanes; ++lane) sum[lane] /= count;
    return T::pack(sum);
  }

  // Token `k` of a window, row by row; zero in the padding.
  GRIDPOOL_FN Vec window_token(int version, int row, int column, int k, int vec) const {
    const int y = row * args.window + k / args.window - args.padding;
    const int x_ = column * args.window + k % args.window - args.padding;
    const bool inside = y >= 0 && y < args.height && x_ >= 0 && x_ < args.width && vec < args.vecs;
    return inside ? token(version, y, x_, vec) : Vec{};
  }

  GRIDPOOL_FN long long offset(int frame, int y, int column) const {
    return ((static_cast<long long>(frame) * args.height + y) * args.width + column) * args.vecs;
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
GRIDPOOL_FN float finish(float norm, const Args& args) {
  if (infinite(args.order)) return norm;
  const float mean = norm * args.inverse_dim;
  if (args.order == 2.0f) return sqrtf(mean);
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
    for (int k = 0; k < kTokens; ++k)
      GRIDPOOL_UNROLL
      for (int n = 0; n < NV; ++n) token[k][n] = clip.window_token(version, row, column, k, thread + n * threads);
    GRIDPOOL_UNROLL
    for (int k = 0; k < kTokens; ++k) {
      norm[k] = 0.0f;
      GRIDPOOL_UNROLL
      for (int n = 0; n < NV; ++n) norm[k] = accumulate<T, ORDER>(norm[k], token[k][n], clip.args.order);
    }
  }

  // `norm` holds the sums of all threads now.
  GRIDPOOL_FN void write(const Args& args, Vec* out, int thread, int threads) {
    float top = -INFINITY_F, total = 0.0f;
    GRIDPOOL_UNROLL
    for (int k = 0; k < kTokens; ++k) {
      norm[k] = args.temperature * finish(norm[k], args);
      top = largest(top, norm[k]);
    }
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
  float norm = 0.0f;
  for (int vec = lane; vec < clip.args.vecs; vec += 32)
    norm = accumulate<T, ORDER>(norm, clip.window_token(version, row, column, k, vec), clip.args.order);
  return norm;
}

template <class T, int DEPTH>
GRIDPOOL_FN void weighted_sum(const Clip<T, DEPTH>& clip, int version, int row, int column, const float* logits, Vec* out, int thread,
                              int threads) {
  const int tokens = clip.args.window * clip.args.window;
  float top = -INFINITY_F, total = 0.0f;
  for (int k = 0; k < tokens; ++k) top = largest(top, logits[k]);
  for (int k = 0; k < tokens; ++k) total += expf(logits[k] - top);
  for (int vec = thread; vec < clip.args.vecs; vec += threads) {
    float sum[T::kLanes] = {};
    for (int k = 0; k < tokens; ++k) add<T>(sum, clip.window_token(version, row, column, k, vec), expf(logits[k] - top) / total);
    store_streaming(out + vec, T::pack(sum));
  }
}

// Unit `unit` of a pooled frame: kSegment cells of one row.
template <class T, int DEPTH>
GRIDPOOL_FN void pool_segment(const Clip<T, DEPTH>& clip, Vec* scratch, int pool, int unit, int thread, int threads) {
  const int* entry = clip.plan + clip.args.pools_at + 4 * pool;
  const int w = entry[2], segments = (w + kSegment - 1) / kSegment;
  const int cy = unit / segments, first = unit % segments * kSegment;
  const int cells = w - first < kSegment ? w - first : kSegment;
  for (int i = thread; i < cells * clip.args.vecs; i += threads) {
    const int cx = first + i / clip.args.vecs, vec = i % clip.args.vecs;
    scratch[(static_cast<long long>(entry[3]) + cy * w + cx) * clip.args.vecs + vec] = clip.cell(pool, cy, cx, vec);
  }
}

GRIDPOOL_FN int pool_units(const Args& args, const int* plan, int pool) {
  const int* entry = plan + args.pools_at + 4 * pool;
  return entry[1] * ((entry[2] + kSegment - 1) / kSegment);
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
    const int units = pool_units(args, plan, index), all = threads * blockDim.y;
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x)
      pool_segment(clip, scratch, index, unit, thread + threads * static_cast<int>(threadIdx.y), all);
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
      if (lane == 0) logits[k] = args.temperature * finish(norm, args);
    }
    __syncthreads();
    weighted_sum(clip, version, row, column, logits, target, thread, threads);
  }
}
#endif

}  // namespace gridpool
