"""The schedule as tables for the kernel: which launch pools what, and which tokens each output frame is made of.

In: a spec and T, H, W. Out: `Plan`, whose `ints` go into the graph as an attribute, into the kernel's source or into GPU memory.

A summary frame is never stored: it is a tiling of *pooled frames* (a frame resized to one tile), which levels share: what a later
level reads of the clip itself has often been pooled already. A frame's versions are numbered: 0..T-1 are the original frames, T..
the summaries, in the order of the schedule.

Launch k pools what launch k-1 completed, so their order is all the synchronization that launches need. Windows of a frame run in
the first launch that can compute them; those of frames that nothing pools are spread over the later launches and come first there:
they need no earlier launch, so the GPU has work while one ends, and late levels, which are small, do not leave it idle. Where
windows are 2x2 and a pooled frame has half the frame's size, one task does both: the kernel reads the frame once. Otherwise a frame
is pooled just before its windows run, and the second read hits the L2 cache. In each launch original frames come before summaries.

    ints = [FORMAT, T, H, W, H', W', window, padding, launches L, tasks N, versions V, tiles M, pools P, scratch tokens]
           + L+1 first tasks + N x (kind, index, version, pool) + V x (tile columns, h, w, first tile)
           + M pools + P x (version, h, w, first scratch token)

T frames, H, W patch rows and columns, H', W' windows, h, w cells of a pooled frame.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

from plugins.op import StGridPool, output_shape, tile_layout
from plugins.schedule import ptg_schedule

FORMAT = 2
HEADER = 14
# Kinds of tasks: windows of a frame, a pooled frame, and both in one walk; their index is a frame, a pool, a frame.
WINDOWS, POOL, BOTH = range(3)


@dataclass(frozen=True)
class Plan:
    """ints, as above, and the tables in them."""

    ints: tuple[int, ...]

    @property
    def frames(self) -> int:
        return self.ints[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, H', W') of the output."""
        return self.ints[1], self.ints[4], self.ints[5]

    @property
    def launches(self) -> list[list[tuple[int, ...]]]:
        """The tasks of each launch."""
        tasks, firsts = self.tasks, self.ints[HEADER : HEADER + self.ints[8] + 1]
        return [tasks[start:end] for start, end in pairwise(firsts)]

    @property
    def scratch_tokens(self) -> int:
        """[D] vectors of scratch memory."""
        return self.ints[13]

    @property
    def tasks(self) -> list[tuple[int, ...]]:
        return self._rows("tasks", self.ints[9])

    @property
    def versions(self) -> list[tuple[int, ...]]:
        return self._rows("versions", self.ints[10])

    @property
    def pools(self) -> list[tuple[int, ...]]:
        return self._rows("pools", self.ints[12])

    def section(self, name: str) -> int:
        """Where `tasks`, `versions`, `tiles` or `pools` begin."""
        tasks = HEADER + self.ints[8] + 1
        versions = tasks + 4 * self.ints[9]
        tiles = versions + 4 * self.ints[10]
        return {"tasks": tasks, "versions": versions, "tiles": tiles, "pools": tiles + self.ints[11]}[name]

    def tiles_of(self, version: int) -> tuple[int, ...]:
        """The pooled frames that a summary shows; none for an original frame."""
        if version < self.frames:
            return ()
        columns, height, _, first = self.versions[version - self.frames]
        start = self.section("tiles") + first
        return self.ints[start : start + -(-self.ints[2] // height) * columns]

    def level(self, version: int) -> int:
        """How many levels of summaries lie between a version and the clip."""
        return max((1 + self.level(self.pools[pool][0]) for pool in self.tiles_of(version)), default=0)

    @property
    def depth(self) -> int:
        return max((self.level(self.frames + i) for i in range(self.ints[10])), default=0)

    def _rows(self, name: str, count: int) -> list[tuple[int, ...]]:
        start = self.section(name)
        return [self.ints[i : i + 4] for i in range(start, start + 4 * count, 4)]


def make_plan(spec: StGridPool, frames: int, height: int, width: int) -> Plan:
    """The plan of a clip; SpecError where the spec does not fit the grid."""
    _, rows, columns, _ = output_shape(spec, (frames, height, width, 1))
    versions: list[tuple[int, ...]] = []
    tiles: list[int] = []
    pools: dict[tuple[int, int, int], int] = {}  # (version, h, w): number
    level: Counter[int] = Counter()  # of a version: the launch that completes it; originals need none
    current = list(range(frames))  # version of each frame
    for groups in ptg_schedule(frames, spec.sizes, spec.strides):
        before = list(current)
        for group in groups:
            reads = [before[read] for read in group.reads]
            down, across = tile_layout(len(reads))
            h, w = -(-height // down), -(-width // across)
            current[group.writes] = frames + len(versions)
            versions.append((across, h, w, len(tiles)))
            tiles += [pools.setdefault((read, h, w), len(pools)) for read in reads]
            level[current[group.writes]] = 1 + max(level[read] for read in reads)
    half = (-(-height // 2), -(-width // 2)) if (spec.window, spec.padding) == (2, 0) else None
    launches = _launches(current, level, pools, half)
    tasks = [task for launch in launches for task in launch]
    *scratch, tokens = accumulate((h * w for _, h, w in pools), initial=0)
    header = [FORMAT, frames, height, width, rows, columns, spec.window, spec.padding]
    header += [len(launches), len(tasks), len(versions), len(tiles), len(pools), tokens]
    firsts = accumulate(map(len, launches), initial=0)
    pool_rows = [(*pool, first) for pool, first in zip(pools, scratch, strict=True)]
    return Plan((*header, *firsts, *chain(*tasks), *chain(*versions), *tiles, *chain(*pool_rows)))


def in_one_launch(plan: Plan) -> Plan:
    """The same tables with windows alone, for a kernel that computes summaries on the fly; the longest windows come first."""
    windows = [(WINDOWS, index, version, 0) for kind, index, version, _ in plan.tasks if kind != POOL]
    windows.sort(key=lambda task: -plan.level(task[2]))
    ints = list(plan.ints)
    ints[8:10] = [1, len(windows)]
    return Plan((*ints[:HEADER], 0, len(windows), *chain(*windows), *ints[plan.section("versions") :]))


def _launches(
    current: list[int], level: Counter[int], pools: dict[tuple[int, int, int], int], half: tuple[int, int] | None
) -> list[list[tuple[int, ...]]]:
    """The tasks of each launch. half: the size of a pooled frame that one task can make together with the windows, if any."""
    frames = len(current)
    frame_of = {version: frame for frame, version in enumerate(current)}
    launches: list[list[tuple[int, ...]]] = [[] for _ in range(1 + max(level[version] for version in current))]
    pools_of: dict[int, list[tuple[int, ...]]] = {}
    for (version, *size), pool in pools.items():
        pools_of.setdefault(version, []).append((pool, *size))
    for version, pooled in sorted(pools_of.items()):
        launch, frame = launches[level[version]], frame_of.get(version)
        joined = next((pool for pool, *size in pooled if tuple(size) == half), None) if frame is not None else None
        alone = [(POOL, pool, version, 0) for pool, *_ in pooled if pool != joined]
        if frame is None:
            launch += alone
        elif joined is None:
            launch += [*alone, (WINDOWS, frame, version, 0)]  # they read what was just pooled
        else:
            launch += [(BOTH, frame, version, joined), *alone]
    free: list[tuple[int, ...]] = []  # of original frames that nothing pools
    for frame, version in enumerate(current):
        if version not in pools_of:
            (launches[level[version]] if version >= frames else free).append((WINDOWS, frame, version, 0))
    later = launches[1:] or launches
    for number, launch in enumerate(later):
        launch[:0] = free[number * len(free) // len(later) : (number + 1) * len(free) // len(later)]
    return [launch for launch in launches if launch]
