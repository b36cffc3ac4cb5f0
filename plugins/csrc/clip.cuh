// A clip as the kernel sees it: a token of any version of any frame, whether in the clip, in scratch, or a mean yet to be computed.
#pragma once

#include "vectors.cuh"

namespace gridpool {

constexpr int kScratch = -1;  // DEPTH: pooled frames are in scratch
constexpr int kAnyOrder = 0;  // ORDER: read from Args; 2 is compiled in
constexpr int kWindows = 0, kPool = 1, kBoth = 2;  // kinds of tasks
constexpr int kMaxWindow = 32;
constexpr int kMaxThreads = 512;
constexpr int kMostVectors = 1024;  // of a token that is walked: one stage of them fits the shared memory of any GPU's block

// Passed by value. `*_at` are positions in the plan's ints.
struct Args {
  int frames, height, width, rows, columns, window, padding;
  int vecs;  // 16-byte vectors a token
  int tasks_at, versions_at, tiles_at, pools_at;
  float temperature, order, inverse_dim;
};

// One of the plan's launches: tasks of original frames come first. units: blocks of one of those; late_units: of one of the others.
struct Launch {
  int first_task, originals, units, late_units;

  // The task that a block works on, and which unit of it.
  GRIDPOOL_BOTH int task_of(int block, int* unit) const {
    const int late = block - originals * units;
    *unit = late < 0 ? block % units : late % late_units;
    return first_task + (late < 0 ? block / units : originals + late / late_units);
  }
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

  // Where a token of a frame's version is: in the clip, in scratch, or (on the fly) not computed yet.
  struct Place {
    const Vec* base;  // null in the padding, and for a cell that has to be computed
    int pool, cy, cx;
    bool written;  // in scratch
  };

  GRIDPOOL_FN Place place(int version, int y, int column) const {
    if (version < args.frames)
      return {x + ((static_cast<long long>(version) * args.height + y) * args.width + column) * args.vecs, -1, 0, 0, false};
    if (DEPTH == kScratch) return {scratch + static_cast<long long>(scratch_token(version, y, column)) * args.vecs, -1, 0, 0, true};
    int pool, cy, cx;
    tile(version, y, column, pool, cy, cx);
    return {nullptr, pool, cy, cx, false};
  }

  // Which cell of which pooled frame a summary's token is.
  GRIDPOOL_FN void tile(int version, int y, int column, int& pool, int& cy, int& cx) const {
    const int* tiling = plan + args.versions_at + 4 * (version - args.frames);
    const int h = tiling[1], w = tiling[2], down = y / h, across = column / w;
    pool = plan[args.tiles_at + tiling[3] + down * tiling[0] + across];
    cy = y - down * h, cx = column - across * w;
  }

  // And where it is in scratch, in tokens.
  GRIDPOOL_FN int scratch_token(int version, int y, int column) const {
    int pool, cy, cx;
    tile(version, y, column, pool, cy, cx);
    const int* entry = plan + args.pools_at + 4 * pool;
    return entry[3] + cy * entry[2] + cx;
  }

  // Token `k` of a window, row by row.
  GRIDPOOL_FN Place window_place(int version, int row, int column, int k) const {
    const int y = row * args.window + k / args.window - args.padding;
    const int x_ = column * args.window + k % args.window - args.padding;
    if (y < 0 || y >= args.height || x_ < 0 || x_ >= args.width) return {nullptr, -1, 0, 0, false};
    return place(version, y, x_);
  }

  // LAST: nothing reads it again.
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

}  // namespace gridpool
