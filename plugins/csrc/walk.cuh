// Windows of 2x2 and the cells of a pooled frame of half the size, in one walk along a row of windows: a token is fetched for both.
//
// Such a cell is the mean of a window's tokens and, where the frame's side is odd, of one more row above and one more column to
// the left. A step of a walk is a window and its cell; the sums of a step's last column are kept for the next cell. So only the
// row above is read twice, by two walks at about the same time, and the column before a walk that begins within a row.
//
// Each thread copies to shared memory what it will use, STAGES - 1 steps ahead: threads wait only where norms are summed.
#pragma once

#include "window.cuh"

namespace gridpool {

constexpr int kSteps = 4, kLateSteps = 3;  // the longest walk in an original frame, and in a summary
constexpr int kStepTokens = 6;             // of a step: by row, the first one above the window, and column

// Whether a walk can make the cells of a pooled frame.
GRIDPOOL_BOTH bool walks(const Args& args, const int* entry) {
  return args.window == 2 && args.padding == 0 && entry[1] == ceil_div(args.height, 2) && entry[2] == ceil_div(args.width, 2);
}

// Where a block walks: part of a task.
struct Stretch {
  int version, frame, pool;  // frame, pool: -1 where there are no windows, or no cells
  int row, first, end;       // of windows and cells; nothing to do where end is not beyond first
  int begin;                 // first, or the step before it where its last column is part of the first cell
  int units;                 // stretches of the task

  GRIDPOOL_BOTH Stretch(const Args& args, const int* plan, int number, int unit) {
    const int* task = plan + args.tasks_at + 4 * number;
    version = task[2], frame = task[0] == kPool ? -1 : task[1];
    pool = task[0] == kWindows ? -1 : task[0] == kPool ? task[1] : task[3];
    const int rows = pool < 0 ? args.rows : ceil_div(args.height, 2), columns = pool < 0 ? args.columns : ceil_div(args.width, 2);
    const int length = version < args.frames ? kSteps : kLateSteps;
    units = rows * ceil_div(columns, length);
    row = unit % rows, first = unit / rows * length, end = smallest(first + length, columns);
    begin = pool >= 0 && first > 0 && args.width % 2 ? first - 1 : first;
  }
};

// A thread's share of a walk: NV vectors of each token, in a block of THREADS.
template <class T, int ORDER, int NV, int STAGES, int THREADS>
struct Walk {
  static constexpr int kVectors = STAGES * kStepTokens * NV;  // of shared memory, a thread
  static constexpr int kPlaces = (kLateSteps + 1) * kStepTokens;

  const Args& args;
  const Stretch& at;
  Vec* shared;
  SharedAddress target;  // the same
  const int* places;     // of a summary: where each token of the walk is in scratch
  const Vec* row[3];     // the first token of each row, or of scratch
  Vec *cells, *windows;  // the first ones of the row, for this thread
  int thread, fetching, slot, height;  // height: rows of a cell
  bool above, across;    // cells overlap in that direction
  bool there[3], has[NV];
  float left[NV][T::kLanes], norm[4];

  // shared: kVectors * THREADS vectors of the block.
  GRIDPOOL_FN Walk(const Clip<T, kScratch>& clip, const Stretch& at, Vec* scratch, Vec* out, const int* places, Vec* shared, int thread)
      : args(clip.args), at(at), shared(shared + thread), target(shared_address(shared + thread)), places(places), thread(thread) {
    fetching = slot = 0;
    above = at.pool >= 0 && args.height % 2, across = at.pool >= 0 && args.width % 2;
    height = smallest(2, args.height - 2 * at.row) + (above && at.row > 0);
    GRIDPOOL_UNROLL
    for (int r = 0; r < 3; ++r) {
      there[r] = inside(r);
      const int y = there[r] ? y_of(r) : 0;
      row[r] = at.version < args.frames ? clip.x + (static_cast<long long>(at.version) * args.height + y) * args.width * args.vecs : scratch;
      row[r] += thread;
    }
    const int* entry = clip.plan + args.pools_at + 4 * largest_of(at.pool, 0);
    cells = at.pool < 0 ? scratch : scratch + (static_cast<long long>(entry[3]) + at.row * entry[2]) * args.vecs + thread;
    windows = out + (static_cast<long long>(at.frame) * args.rows + at.row) * args.columns * args.vecs + thread;
    GRIDPOOL_UNROLL
    for (int n = 0; n < NV; ++n) {
      has[n] = thread + n * THREADS < args.vecs;
      GRIDPOOL_UNROLL
      for (int lane = 0; lane < T::kLanes; ++lane) left[n][lane] = 0.0f;
    }
    for (int i = 0; i < kVectors; ++i) this->shared[i * THREADS] = Vec{};  // what is never copied is zero
  }

  GRIDPOOL_FN int y_of(int r) const { return 2 * at.row + r - 1 - args.padding; }

  // Whether a row of a step is in the frame, and used.
  GRIDPOOL_FN bool inside(int r) const {
    const int y = y_of(r);
    return (r > 0 || above) && y >= 0 && y < args.height;
  }

  // Of a summary: where token `number`, counted from the first step on, is in scratch.
  GRIDPOOL_FN int lookup(const Clip<T, kScratch>& clip, int number) const {
    const int r = number % kStepTokens / 2, column = 2 * (at.begin + number / kStepTokens) + number % 2 - args.padding;
    const bool exists = inside(r) && column >= 0 && column < args.width;
    return exists ? clip.scratch_token(at.version, y_of(r), column) : 0;
  }

  GRIDPOOL_FN static int position(int stage, int r, int c, int n) { return ((stage * kStepTokens + 2 * r + c) * NV + n) * THREADS; }

  // Begins to copy the tokens of a step.
  GRIDPOOL_FN void fetch(int step) {
    if (step < at.end) at.version < args.frames ? copy<true>(step) : copy<false>(step);
    commit_copies();
    fetching = fetching + 1 == STAGES ? 0 : fetching + 1;
  }

  template <bool ORIGINAL>
  GRIDPOOL_FN void copy(int step) const {
    GRIDPOOL_UNROLL
    for (int c = 0; c < 2; ++c) {
      const int column = 2 * step + c - args.padding;
      if (column < 0 || column >= args.width) {
        GRIDPOOL_UNROLL
        for (int i = 0; i < 3 * NV; ++i) shared[position(fetching, i / NV, c, i % NV)] = Vec{};
        continue;
      }
      if (c == 0 && step < at.first) continue;
      GRIDPOOL_UNROLL
      for (int r = 0; r < 3; ++r) {
        const unsigned token = ORIGINAL ? column : places[(step - at.begin) * kStepTokens + 2 * r + c];
        const Vec* source = row[r] + static_cast<unsigned long long>(token) * static_cast<unsigned>(args.vecs);
        GRIDPOOL_UNROLL
        for (int n = 0; n < NV; ++n) copy_async(target, position(fetching, r, c, n), source + n * THREADS, there[r] && has[n]);
      }
    }
  }

  // Waits for a step's tokens; their norms as far as this thread sees them, and their cell.
  GRIDPOOL_FN void gather(int step) {
    wait_for_copies<STAGES - 1>();
    GRIDPOOL_UNROLL
    for (int k = 0; k < 4; ++k) norm[k] = 0.0f;
    at.pool >= 0 ? sum_up<true>(step) : sum_up<false>(step);
  }

  template <bool POOLING>
  GRIDPOOL_FN void sum_up(int step) {
    GRIDPOOL_UNROLL
    for (int n = 0; n < NV; ++n) {
      float sum[2][T::kLanes];  // of a cell: the first column and what is left of it, the second column
      GRIDPOOL_UNROLL
      for (int c = 0; c < 2; ++c) {
        GRIDPOOL_UNROLL
        for (int r = POOLING ? 0 : 1; r < 3; ++r) {
          float value[T::kLanes];  // of row 0 zeros where no cell has it
          T::unpack(shared[position(slot, r, c, n)], value);
          GRIDPOOL_UNROLL
          for (int lane = 0; lane < T::kLanes; ++lane) {
            if (r > 0) norm[2 * r - 2 + c] = accumulate<ORDER>(norm[2 * r - 2 + c], value[lane], args.order);
            if (POOLING) sum[c][lane] = r > 0 ? sum[c][lane] + value[lane] : c == 0 ? left[n][lane] + value[lane] : value[lane];
          }
        }
      }
      if constexpr (POOLING) finish_cell(step, n, sum);
    }
  }

  GRIDPOOL_FN void finish_cell(int step, int n, float (&sum)[2][T::kLanes]) {
    GRIDPOOL_UNROLL
    for (int lane = 0; lane < T::kLanes; ++lane) {
      sum[0][lane] += sum[1][lane];
      if (across) left[n][lane] = sum[1][lane];
    }
    if (step < at.first || !has[n]) return;
    const int width = smallest(2, args.width - 2 * step) + (across && step > 0);
    const float share = 1.0f / static_cast<float>(height * width);
    GRIDPOOL_UNROLL
    for (int lane = 0; lane < T::kLanes; ++lane) sum[0][lane] *= share;
    cells[step * args.vecs + n * THREADS] = T::pack(sum[0]);
  }

  // Whether a step has a window.
  GRIDPOOL_FN bool shows(int step) const {
    return at.frame >= 0 && at.row < args.rows && step >= at.first && step < args.columns;
  }

  // A step's window, by the softmax of its norms.
  GRIDPOOL_FN void write(int step, const float (&weight)[4]) const {
    GRIDPOOL_UNROLL
    for (int n = 0; n < NV; ++n) {
      float sum[T::kLanes] = {};
      GRIDPOOL_UNROLL
      for (int k = 0; k < 4; ++k) add<T>(sum, shared[position(slot, 1 + k / 2, k % 2, n)], weight[k]);
      if (has[n]) store_streaming(windows + step * args.vecs + n * THREADS, T::pack(sum));
    }
  }

  GRIDPOOL_FN void next() { slot = slot + 1 == STAGES ? 0 : slot + 1; }
};

}  // namespace gridpool
