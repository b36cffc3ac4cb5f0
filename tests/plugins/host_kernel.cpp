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

static const Vec kPoison{{~0u, ~0u, ~0u, ~0u}};

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

template <class T, int ORDER, int NV, int STAGES, int THREADS>
static void walk(const Clip<T, kScratch>& clip, const Stretch& at, Vec* scratch, Vec* out) {
  using Share = Walk<T, ORDER, NV, STAGES, THREADS>;
  std::vector<Vec> shared(static_cast<size_t>(Share::kVectors) * THREADS, kPoison);
  std::vector<Share> block;
  int places[Share::kPlaces];
  for (int thread = 0; thread < THREADS; ++thread) block.emplace_back(clip, at, scratch, out, places, shared.data(), thread);
  if (at.version >= clip.args.frames)
    for (int token = 0; token < Share::kPlaces; ++token) places[token] = block[0].lookup(clip, token);
  for (Share& mine : block)
    for (int step = at.begin; step < at.begin + STAGES - 1; ++step) mine.fetch(step);
  for (int step = at.begin; step < at.end; ++step) {
    for (Share& mine : block) mine.fetch(step + STAGES - 1), mine.gather(step);
    if (block[0].shows(step)) {
      float weight[4], total = 0.0f;
      for (int k = 0; k < 4; ++k) {
        weight[k] = 0.0f;
        for (const Share& mine : block) weight[k] = combine(weight[k], mine.norm[k], clip.args.order);
        weight[k] = clip.args.temperature * finish<ORDER>(weight[k], clip.args);
      }
      const float top = largest(largest(weight[0], weight[1]), largest(weight[2], weight[3]));
      for (float& one : weight) total += one = expf(one - top);
      for (float& one : weight) one /= total;
      for (const Share& mine : block) mine.write(step, weight);
    }
    for (Share& mine : block) mine.next();
  }
}

// Any block that is large enough.
template <class T, int ORDER>
static void walk(const Clip<T, kScratch>& clip, const Stretch& at, Vec* scratch, Vec* out, const Choice& choice) {
  if (choice.vectors == 1) return walk<T, ORDER, 1, 2, 32>(clip, at, scratch, out);
  if (choice.stages == 1) return walk<T, ORDER, 2, 1, kMaxThreads>(clip, at, scratch, out);
  choice.threads <= 64 ? walk<T, ORDER, 2, 2, 64>(clip, at, scratch, out) : walk<T, ORDER, 2, 2, kMaxThreads>(clip, at, scratch, out);
}

template <int ORDER, class T, int DEPTH>
static void windows(const Clip<T, DEPTH>& clip, const int* task, const Choice& choice, Vec* out) {
  const Args& args = clip.args;
  const int threads = choice.threads, version = task[2];
  for (int window = 0; window < args.rows * args.columns; ++window) {
    const int row = window / args.columns, column = window % args.columns;
    Vec* target = out + (static_cast<long long>(task[1]) * args.rows * args.columns + window) * args.vecs;
    if (choice.window == 2)
      choice.vectors == 4   ? registers<T, ORDER, DEPTH, 2, 4>(clip, version, row, column, target, threads)
      : choice.vectors == 2 ? registers<T, ORDER, DEPTH, 2, 2>(clip, version, row, column, target, threads)
                            : registers<T, ORDER, DEPTH, 2, 1>(clip, version, row, column, target, threads);
    else if (choice.window == 3)
      registers<T, ORDER, DEPTH, 3, 1>(clip, version, row, column, target, threads);
    else
      generic<T, ORDER, DEPTH>(clip, version, row, column, target, threads);
  }
}

template <class T, int ORDER, int DEPTH>
static void launch(const Plan& plan, const Args& args, int number, Choice choice, const Vec* x, Vec* scratch, Vec* out) {
  const Clip<T, DEPTH> clip{args, plan.ints, x, scratch};
  for (int i = plan.first_task(number); i < plan.first_task(number + 1); ++i) {
    const int* task = plan.ints + args.tasks_at + 4 * i;
    const int pool = pool_of(task);
    const bool walked = choice.stages && (task[0] == kWindows || walks(args, plan.ints + args.pools_at + 4 * pool));
    if constexpr (DEPTH == kScratch) {
      if (walked) {
        const Launch units = plan.launch(args, choice, number);
        for (int unit = 0; unit < (task[2] < args.frames ? units.units : units.late_units); ++unit) {
          const Stretch at(args, plan.ints, i, unit);
          if (at.first < at.end) walk<T, ORDER>(clip, at, scratch, out, choice);
        }
        continue;
      }
      if (task[0] != kWindows)
        for (int cell = 0; cell < pool_cells(args, plan.ints, pool); ++cell)
          for (int thread = 0; thread < choice.threads; ++thread) pool_cell(clip, scratch, pool, cell, thread, choice.threads);
    }
    if (task[0] != kPool) windows<ORDER>(clip, task, choice, out);
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
  if (const char* fault = way == 2 ? nullptr : plan.fault()) {  // fault() refuses the order of a plan for one launch
    fprintf(stderr, "%s\n", fault);
    return 2;
  }
  const int lanes = dtype == 0 ? 4 : 8;
  const Args args = plan.args(hidden, lanes, numbers[0], numbers[1]);
  const std::vector<Vec> x = read<Vec>(static_cast<size_t>(args.frames) * args.height * args.width * args.vecs);
  Choice choice = choose(args, 99 << 10, 0);
  if (way == 1) choice.window = choice.stages = 0;
  if (way == 2) choice.stages = 0;
  if (head[2]) choice.threads = head[2], choice.vectors = ceil_div(args.vecs, head[2]);
  std::vector<Vec> scratch(way == 2 ? 0 : static_cast<size_t>(plan.scratch_tokens()) * args.vecs, kPoison);
  std::vector<Vec> out(static_cast<size_t>(args.frames) * args.rows * args.columns * args.vecs, kPoison);
  if (dtype == 0)
    run<Float>(plan, args, way, choice, x.data(), scratch.data(), out.data());
  else if (dtype == 1)
    run<Half>(plan, args, way, choice, x.data(), scratch.data(), out.data());
  else
    run<BFloat16>(plan, args, way, choice, x.data(), scratch.data(), out.data());
  fwrite(out.data(), sizeof(Vec), out.size(), stdout);
  return 0;
}
