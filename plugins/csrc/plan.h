// The tables of plugins/plan.py as the kernel's arguments, checked: an index out of range is an error here, not a read on the GPU.
#pragma once

#include <vector>

#include "st_gridpool.cuh"

namespace gridpool {

// Which kernel a clip takes: window 0 is the generic way; a block has `groups` units of `threads` threads, a thread `vectors`
// vectors of a token. stages: of a walk (walk.cuh), else 0. plugins/kernel/variants.py makes the same choice.
struct Choice {
  int window, vectors, threads, groups, stages;

  int stage_bytes() const { return kStepTokens * vectors * threads * static_cast<int>(sizeof(Vec)); }
  int shared_bytes() const { return stages * stage_bytes(); }
};

constexpr int kBlocks[] = {32, 64, 96, 128, 224, 256, 384, 512};  // threads of a block that walks, compiled in

constexpr int kNarrowBlock = 128;  // the largest of them with one vector a thread
constexpr int kFewWindows = 64;    // of a clip, for each multiprocessor

constexpr int kDeclaredShared = 1024;  // at least the bytes of shared memory that a walking kernel declares itself

// shared: bytes of shared memory that the GPU gives a block. In a clip with too few windows to fill all multiprocessors a thread has one
// vector of a token, so that more threads share a walk.
inline Choice choose(const Args& args, int shared, int multiprocessors) {
  const int window = args.window, vecs = args.vecs;
  if (window == 2 && vecs <= kMostVectors) {
    const bool few = args.frames * args.rows * args.columns < kFewWindows * multiprocessors;
    Choice choice{2, vecs <= (few ? kNarrowBlock : 32) ? 1 : 2, 0, 1, 1};
    for (int block : kBlocks)
      if (!choice.threads && block >= ceil_div(vecs, choice.vectors)) choice.threads = block;
    choice.stages = 2 * choice.stage_bytes() + kDeclaredShared <= shared ? 2 : 1;  // 1 only with blocks of 384 and 512 threads
    return choice;
  }
  const int threads = ceil_div(vecs, 32) * 32;
  if (window != 3 || threads > kMaxThreads) return {0, 1, smallest(threads, 256), 1, 0};
  return {3, 1, threads, threads < 128 ? 128 / threads : 1, 0};
}

// The pooled frame of a task that is not windows alone.
inline int pool_of(const int* task) { return task[0] == kPool ? task[1] : task[3]; }

struct Plan {
  const int* ints;
  int length;

  int launches() const { return ints[8]; }
  int scratch_tokens() const { return ints[13]; }
  int first_task(int launch) const { return ints[kHeader + launch]; }
  int tasks() const { return ints[9]; }

  Args args(int hidden, int lanes, float temperature, float order) const {
    Args args{};
    args.frames = ints[1], args.height = ints[2], args.width = ints[3], args.rows = ints[4], args.columns = ints[5];
    args.window = ints[6], args.padding = ints[7];
    args.vecs = hidden / lanes;
    args.tasks_at = kHeader + launches() + 1;
    args.versions_at = args.tasks_at + 4 * ints[9];
    args.tiles_at = args.versions_at + 4 * ints[10];
    args.pools_at = args.tiles_at + ints[11];
    args.temperature = temperature, args.order = order, args.inverse_dim = 1.0f / static_cast<float>(hidden);
    return args;
  }

  Launch launch(const Args& args, const Choice& choice, int number) const {
    Launch launch{first_task(number), 0, 1, 1};
    for (int i = first_task(number); i < first_task(number + 1); ++i) {
      const int* task = row(args.tasks_at, i);
      const bool late = task[2] >= args.frames;
      const int pool = pool_of(task), cells = task[0] == kWindows ? 0 : pool_cells(args, ints, pool);
      int count = (task[0] == kPool ? 0 : args.rows * args.columns) + cells;
      if (choice.stages && (task[0] == kWindows || walks(args, row(args.pools_at, pool)))) count = Stretch(args, ints, i, 0).units;
      int& most = late ? launch.late_units : launch.units;
      most = largest_of(most, ceil_div(count, choice.groups));
      launch.originals += !late;
    }
    return launch;
  }

  int blocks(const Launch& launch, int number) const {
    const int tasks = first_task(number + 1) - first_task(number);
    return launch.originals * launch.units + (tasks - launch.originals) * launch.late_units;
  }

  // What is wrong with the plan, or null.
  const char* fault() const {
    if (length < kHeader) return "the plan is too short";
    if (ints[0] != kFormat && ints[0] != kFormat - 1) return "the plan has another format; export the graph again with this release";
    for (int i = 1; i < kHeader; ++i)
      if (ints[i] < (i < 7 || i == 8 || i == 9) || ints[i] > kLimit) return "a number in the plan's header is out of range";
    const Args at = args(8, 8, 1, 2);
    const int frames = at.frames, versions = ints[10], tiles = ints[11], pools = ints[12];
    if (at.window > kMaxWindow || at.padding >= at.window) return "the plan's window or padding is out of range";
    if (at.rows != (at.height + 2 * at.padding) / at.window || at.columns != (at.width + 2 * at.padding) / at.window)
      return "the plan's windows do not fit its grid";
    if (length != at.pools_at + 4 * pools) return "the plan's length is not what its header says";
    for (int i = 0; i <= launches(); ++i)
      if (first_task(i) != 0 && (i == 0 || first_task(i) < first_task(i - 1))) return "the plan's launches are out of order";
    if (first_task(launches()) != tasks()) return "the plan's launches do not end with its tasks";
    int windows = 0;
    for (int i = 0; i < tasks(); ++i) {
      const int* task = row(at.tasks_at, i);
      if (!within(task[0], 3) || !within(task[1], task[0] == kPool ? pools : frames) || !within(task[2], frames + versions) ||
          (task[0] == kBoth && !within(task[3], pools)))
        return "a task of the plan is out of range";
      if (task[0] == kBoth && !walks(at, row(at.pools_at, task[3]))) return "a task of the plan pools to a size that no walk makes";
      windows += task[0] != kPool;
    }
    if (windows != frames) return "the plan does not write every frame once";
    for (int i = 0; i < versions; ++i) {
      const int* tiling = row(at.versions_at, i);
      if (tiling[0] < 1 || tiling[0] > at.width || tiling[1] < 1 || tiling[1] > at.height || tiling[2] < 1 || tiling[2] > at.width)
        return "a summary of the plan has no cells";
      const long long needed = ((at.height - 1) / tiling[1] + 0LL) * tiling[0] + (at.width - 1) / tiling[2] + 1;
      if ((at.width - 1) / tiling[2] >= tiling[0] || tiling[3] < 0 || tiling[3] + needed > tiles)
        return "a summary of the plan is incomplete";
      for (long long tile = tiling[3]; tile < tiling[3] + needed; ++tile) {
        const int pool = ints[at.tiles_at + tile];
        if (!within(pool, pools)) return "a tile of the plan is out of range";
        const int* entry = row(at.pools_at, pool);
        if (entry[1] != tiling[1] || entry[2] != tiling[2] || entry[0] >= frames + i) return "a tile of the plan is of another size";
      }
    }
    if (const char* wrong = order_fault(at)) return wrong;
    long long tokens = 0;
    for (int i = 0; i < pools; ++i) {
      const int* entry = row(at.pools_at, i);
      if (!within(entry[0], frames + versions) || entry[1] < 1 || entry[1] > at.height || entry[2] < 1 || entry[2] > at.width)
        return "a pooled frame of the plan is out of range";
      if (entry[3] < 0 || entry[3] + 1LL * entry[1] * entry[2] > scratch_tokens())
        return "a pooled frame of the plan is outside scratch";
      tokens += 1LL * entry[1] * entry[2];
    }
    return tokens == scratch_tokens() ? nullptr : "the plan's scratch is not that of its pooled frames";
  }

 private:
  // A block waits for earlier launches where its task's version is a summary: so the task must name the version that it reads,
  // and what it reads must have been pooled by an earlier launch.
  const char* order_fault(const Args& at) const {
    std::vector<char> pooled(static_cast<size_t>(ints[12]), 0);
    for (int number = 0; number < launches(); ++number) {
      for (int i = first_task(number); i < first_task(number + 1); ++i) {
        const int* task = row(at.tasks_at, i);
        if (i > first_task(number) && task[2] < at.frames && task[-2] >= at.frames) return "a launch of the plan has summaries first";
        if (task[0] != kWindows && row(at.pools_at, pool_of(task))[0] != task[2])
          return "a task of the plan names another version than it pools";
        if (task[2] < at.frames) continue;
        const int* tiling = row(at.versions_at, task[2] - at.frames);
        for (int y = 0; y < at.height; y += tiling[1])
          for (int x = 0; x < at.width; x += tiling[2])
            if (!pooled[static_cast<size_t>(ints[at.tiles_at + tiling[3] + y / tiling[1] * tiling[0] + x / tiling[2]])])
              return "a launch of the plan reads what no earlier one pooled";
      }
      for (int i = first_task(number); i < first_task(number + 1); ++i)
        if (const int* task = row(at.tasks_at, i); task[0] != kWindows) pooled[static_cast<size_t>(pool_of(task))] = 1;
    }
    return nullptr;
  }

  const int* row(int section, int i) const { return ints + section + 4 * i; }
  static constexpr int kFormat = 2, kHeader = 14, kLimit = 1 << 24;
  static bool within(int value, int count) { return value >= 0 && value < count; }
};

}  // namespace gridpool
