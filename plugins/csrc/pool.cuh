// PTG: pools a frame that a level reads into scratch, one cell per block, where no walk (walk.cuh) makes the pooled frame.
#pragma once

#include "clip.cuh"

namespace gridpool {

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
      nine[i] = inside ? load(first + (i / 3LL * args.width + i % 3) * args.vecs) : Vec{};
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

}  // namespace gridpool
