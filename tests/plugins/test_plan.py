"""The kernel's tables, written out by hand for clips that are small enough."""

from __future__ import annotations

import pytest

from plugins.op import StGridPool
from plugins.plan import BOTH, POOL, WINDOWS, in_one_launch, make_plan

# three frames of 2x3, the first two tiled one above the other into the second: version 3, and nothing reads frame 2
SPEC, GRID = StGridPool((2,), (1,)), (3, 2, 3)
TASKS = [(1, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 0), (0, 2, 2, 0), (0, 1, 3, 0)]
TABLES = (1, 1, 3, 0, 0, 1, 0, 1, 3, 0, 1, 1, 3, 3)  # version 3: a column of tiles 1x3; tiles; pools 0 and 1, three tokens each


def test_the_tables_of_one_summary():
    plan = make_plan(SPEC, *GRID)
    header = (2, 3, 2, 3, 1, 1, 2, 0, 2, 5, 1, 2, 2, 6)
    assert plan.ints == (*header, 0, 3, 5, *(value for task in TASKS for value in task), *TABLES)
    assert (plan.frames, plan.shape, plan.scratch_tokens, plan.depth) == (3, (3, 1, 1), 6, 1)
    assert plan.launches == [TASKS[:3], TASKS[3:]]
    assert (plan.tasks, plan.versions, plan.pools) == (TASKS, [(1, 1, 3, 0)], [(0, 1, 3, 0), (1, 1, 3, 3)])
    assert [plan.section(name) for name in ("tasks", "versions", "tiles", "pools")] == [17, 37, 41, 43]
    assert [plan.tiles_of(version) for version in range(4)] == [(), (), (), (0, 1)]
    assert [plan.level(version) for version in range(4)] == [0, 0, 0, 1]


def test_the_same_tables_for_one_launch_have_windows_alone_the_longest_first():
    plan = in_one_launch(make_plan(SPEC, *GRID))
    header = (2, 3, 2, 3, 1, 1, 2, 0, 1, 3, 1, 2, 2, 6)
    assert plan.ints == (*header, 0, 3, 0, 1, 3, 0, 0, 0, 0, 0, 0, 2, 2, 0, *TABLES)


def test_a_level_pools_what_the_one_before_it_made():
    plan = make_plan(StGridPool((2, 2), (1, 2), window=3, padding=1), 8, 4, 5)
    assert plan.shape == (8, 2, 2)
    assert tuple(map(len, plan.launches)) == (12, 6, 2)
    first, second, third = plan.tasks[:12], plan.tasks[12:18], plan.tasks[18:]
    assert first == [task for frame in range(8) for task in [(1, frame, frame, 0)] + ([] if frame % 2 else [(0, frame, frame, 0)])]
    assert second == [(1, 8, 8, 0), (0, 1, 8, 0), (1, 9, 9, 0), (1, 10, 10, 0), (0, 5, 10, 0), (1, 11, 11, 0)]
    assert third == [(0, 3, 12, 0), (0, 7, 13, 0)]
    assert plan.versions == [(1, 2, 5, first) for first in range(0, 12, 2)]
    assert [plan.tiles_of(version) for version in range(8, 14)] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)]
    assert [plan.level(version) for version in (7, 8, 11, 12, 13)] == [0, 1, 1, 2, 2]
    assert plan.pools == [(version, 2, 5, 10 * version) for version in range(12)] and plan.scratch_tokens == 120


def test_frames_that_nothing_reads_are_spread_over_the_later_launches():
    plan = make_plan(StGridPool(), 32, 27, 27)
    assert tuple(map(len, plan.launches)) == (16, 9, 7, 7)
    free = [[index for kind, index, version, _ in tasks if kind == WINDOWS and index == version] for tasks in plan.launches]
    assert free == [[], [0, 2, 4, 6, 8], [10, 12, 14, 16, 18], [20, 22, 24, 26, 28, 30]]
    assert [tasks[0][:2] for tasks in plan.launches[1:]] == [(0, 0), (0, 10), (0, 20)]


def test_windows_of_a_frame_and_its_pooled_frame_of_half_the_size_are_one_task():
    """Frames 1, 3, 5 … are sampled and pooled to 14x14; 7, 15, 23 and 31 are overwritten, so that only their pooled frames are wanted."""
    first, second, third, fourth = make_plan(StGridPool(), 32, 27, 27).launches
    assert first == [
        (POOL, frame // 2, frame, 0) if frame % 8 == 7 else (BOTH, frame, frame, frame // 2) for frame in range(1, 32, 2)
    ]
    # versions 32, 33, 34, 35 replace 7, 15, 23, 31; level 2 samples 3, 7, 11 …: 15 and 31 again, 36 and 37; level 3 31, 38
    assert second[5:] == [(BOTH, 7, 32, 16), (POOL, 17, 33, 0), (BOTH, 23, 34, 18), (POOL, 19, 35, 0)]
    assert third[5:] == [(BOTH, 15, 36, 20), (POOL, 21, 37, 0)]
    assert fourth[6:] == [(WINDOWS, 31, 38, 0)]


@pytest.mark.parametrize(
    "spec", [StGridPool(window=3), StGridPool(padding=1), StGridPool((6, 6), (1, 2)), StGridPool((2, 2), (1, 1))]
)
def test_other_windows_and_other_pooled_frames_are_tasks_of_their_own(spec):
    assert all(kind != BOTH for kind, *_ in make_plan(spec, 32, 8, 8).tasks)


def test_a_frame_that_two_levels_show_in_one_size_is_pooled_once_and_in_two_sizes_twice():
    plan = make_plan(StGridPool((2, 4), (2, 1)), 4, 4, 4)  # frames 1 and 3 one above the other, then all four as squares
    assert plan.pools == [(1, 2, 4, 0), (3, 2, 4, 8), (0, 2, 2, 16), (1, 2, 2, 20), (2, 2, 2, 24), (4, 2, 2, 28)]
    same = make_plan(StGridPool((2, 2), (2, 1)), 4, 4, 4)
    assert [version for version, *_ in same.pools] == [1, 3, 0, 2, 4]


@pytest.mark.parametrize(
    ("size", "height", "width", "version", "tiles"),
    [(6, 7, 5, (2, 3, 3, 0), 6), (7, 9, 4, (1, 2, 4, 0), 5), (4, 3, 3, (2, 2, 2, 0), 4), (1, 5, 3, (1, 5, 3, 0), 1)],
)
def test_a_summary_shows_the_tiles_that_lie_in_the_frame(size, height, width, version, tiles):
    """Seven tiles of two rows are fourteen rows: a frame of nine shows five of them."""
    plan = make_plan(StGridPool((size,), (1,), window=1), size, height, width)
    assert plan.versions == [version]
    assert plan.tiles_of(size) == tuple(range(tiles))


@pytest.mark.parametrize("spec", [StGridPool((), ()), StGridPool((4,), (2,))])
def test_without_a_summary_there_is_one_launch_of_windows(spec):
    plan = make_plan(spec, 7, 2, 4)
    assert plan.ints == (
        2,
        7,
        2,
        4,
        1,
        2,
        2,
        0,
        1,
        7,
        0,
        0,
        0,
        0,
        0,
        7,
        *(value for frame in range(7) for value in (0, frame, frame, 0)),
    )
    assert (plan.depth, plan.versions, plan.pools) == (0, [], [])
    assert in_one_launch(plan) == plan
