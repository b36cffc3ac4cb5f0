// NSP: norms of a window's tokens, their softmax, the weighted sum; in registers for windows of 2x2 and 3x3, else the generic way.
#pragma once

#include "clip.cuh"

namespace gridpool {

// |value|^p, or the largest |value| of order inf, on top of `norm`.
template <int ORDER>
GRIDPOOL_FN float accumulate(float norm, float value, float order) {
  const float magnitude = fabsf(value);
  if (ORDER == 2 || order == 2.0f) return norm + magnitude * magnitude;
  if (order == 1.0f) return norm + magnitude;
  return infinite(order) ? largest(norm, magnitude) : norm + powf(magnitude, order);
}

template <class T, int ORDER>
GRIDPOOL_FN float accumulate(float norm, Vec vec, float order) {
  float value[T::kLanes];
  T::unpack(vec, value);
  for (int lane = 0; lane < T::kLanes; ++lane) norm = accumulate<ORDER>(norm, value[lane], order);
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

// A thread's share of a window of K x K tokens, kept in registers: vectors thread, thread + threads, ….
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
      for (int n = 0; n < NV; ++n) {
        const int vec = thread + n * threads;
        token[k][n] = vec < clip.args.vecs ? clip.template token<DEPTH == kScratch>(at, vec) : Vec{};
      }
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

}  // namespace gridpool
