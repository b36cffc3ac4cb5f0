// Runs the kernel body on a CPU: one case from stdin, the tokens to stdout. What a block of threads does is done thread by thread,
// with the sum over the block in between; scratch and output start as NaN, and are exactly as large as they must be.
//
//   in   5 ints: dtype (0 float32, 1 float16, 2 bfloat16), way (0 the kernel's choice, 1 generic, 2 on the fly),
//        threads (0: the kernel's choice), D, the plan's length;
//        2 floats: temperature, order;  the plan;  the clip
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../plugins/csrc/plan.h"
#include "../../plugins/csrc/st_gridpool.cuh"

using namespace gridpool;

template <class V>
static std::vector<V> read(size_t count) {
  std::vector<V> values(count);
  if (fread(values.data(), sizeof(V), count, stdin) != count) {
    fprintf(stderr, "short input\n");
    exit(3);
  }
  return values;
}

template <class T, int ORDER, int DEPTH, int K, int NV>
static void registers(const Clip<T, DEPTH>& clip, int version, int row, int column, Vec* out, int threads) {
  using Share = Window<T, ORDER, DEPTH, K, NV>;
  std::vector<Share> block(threads);
  for (int thread = 0; thread < threads; ++thread) block[thread].read(clip, version, row, column, thread, threads);
  for (int k = 0; k < Share::kTokens; ++k) {
    float total = block[0].norm[k];
    for (int thread = 1; thread < threads; ++thread) total = combine(total, block[thread].norm[k], clip.args.order);
    for (Share& share : block) share.norm[k] = total;
  }
  for (int thread = 0; thread < threads; ++thread) block[thread].write(clip.args, out, thread, threads);
}

template <class T, int ORDER, int DEPTH>
static void generic(const Clip<T, DEPTH>& clip, int version, int row, int column, Vec* out, int threads) {
  std::vector<float> logits(clip.args.window * clip.args.window);
  for (size_t k = 0; k < logits.size(); ++k) {
    float norm = 0;
    for (int lane = 0; lane < 32; ++lane)
      norm = combine(norm, lane_norm<T, ORDER>(clip, version, row, column, static_cast<int>(k), lane), clip.args.order);
    logits[k] = clip.args.temperature * finish<ORDER>(norm, clip.args);
  }
  for (int thread = 0; thread < threads; ++thread) weighted_sum(clip, version, row, column, logits.data(), out, thread, threads);
}

template <class T, int ORDER, int DEPTH>
static void launch(const Plan& plan, const Args& args, int number, Choice choice,  const Vec* x, Vec* scratch, Vec* out) {
  const Clip<T, DEPTH> clip{args, plan.ints, x, scratch};
  for (int i = plan.first_task(number); i < plan.first_task(number + 1); ++i) {
    const int* task = plan.ints + args.tasks_at + 4 * i;
    if (task[0]) {
      if constexpr (DEPTH == kScratch)
        for (int cell = 0; cell < pool_cells(args, plan.ints, task[1]); ++cell)
          for (int thread = 0; thread < choice.threads; ++thread) pool_cell(clip, scratch, task[1], cell, thread, choice.threads);
      continue;
    }
    for (int window = 0; window < args.rows * args.columns; ++window) {
      const int row = window / args.columns, column = window % args.columns;
      Vec* target = out + (static_cast<long long>(task[1]) * args.rows * args.columns + window) * args.vecs;
      const int threads = choice.threads;
      if (choice.window == 2)
        choice.vectors == 4   ? registers<T, ORDER, DEPTH, 2, 4>(clip, task[2], row, column, target, threads)
        : choice.vectors == 2 ? registers<T, ORDER, DEPTH, 2, 2>(clip, task[2], row, column, target, threads)
                              : registers<T, ORDER, DEPTH, 2, 1>(clip, task[2], row, column, target, threads);
      else if (choice.window == 3)
        registers<T, ORDER, DEPTH, 3, 1>(clip, task[2], row, column, target, threads);
      else
        generic<T, ORDER, DEPTH>(clip, task[2], row, column, target, threads);
    }
  }
}

template <class T>
static void run(const Plan& plan, const Args& args, int way, Choice choice, const Vec* x, Vec* scratch, Vec* out) {
  for (int number = 0; number < plan.launches(); ++number) {
    if (way == 2)
      launch<T, kAnyOrder, 4>(plan, args, number, choice, x, scratch, out);
    else if (args.order == 2.0f)
      launch<T, 2, kScratch>(plan, args, number, choice, x, scratch, out);
    else
      launch<T, kAnyOrder, kScratch>(plan, args, number, choice, x, scratch, out);
  }
}

int main() {
  const std::vector<int> head = read<int>(5);
  const int dtype = head[0], way = head[1], hidden = head[3];
  const std::vector<float> numbers = read<float>(2);
  const std::vector<int> ints = read<int>(head[4]);
  const Plan plan{ints.data(), head[4]};
  if (const char* fault = plan.fault(way != 2)) {
    fprintf(stderr, "%s\n", fault);
    return 2;
  }
  const int lanes = dtype == 0 ? 4 : 8;
  const Args args = plan.args(hidden, lanes, numbers[0], numbers[1]);
  const std::vector<Vec> x = read<Vec>(static_cast<size_t>(args.frames) * args.height * args.width * args.vecs);
  Choice choice = choose(args.window, args.vecs);
  if (way == 1) choice.window = 0;
  if (head[2]) choice.threads = head[2], choice.vectors = ceil_div(args.vecs, head[2]);
  const Vec poison{{~0u, ~0u, ~0u, ~0u}};
  std::vector<Vec> scratch(way == 2 ? 0 : static_cast<size_t>(plan.scratch_tokens()) * args.vecs, poison);
  std::vector<Vec> out(static_cast<size_t>(args.frames) * args.rows * args.columns * args.vecs, poison);
  if (dtype == 0)
    run<Float>(plan, args, way, choice, x.data(), scratch.data(), out.data());
  else if (dtype == 1)
    run<Half>(plan, args, way, choice, x.data(), scratch.data(), out.data());
  else
    run<BFloat16>(plan, args, way, choice, x.data(), scratch.data(), out.data());
  fwrite(out.data(), sizeof(Vec), out.size(), stdout);
  return 0;
}
