"""Which variant of the kernel a clip gets, and how many blocks of it; csrc/plan.h and csrc/kernels.cuh choose alike."""

from __future__ import annotations

import pytest

from plugins.kernel.variants import Variant, few_windows, launches, resident_blocks, variant_for
from plugins.op import StGridPool
from plugins.plan import make_plan


@pytest.mark.parametrize(
    ("hidden", "dtype", "shared", "chosen"),  # shared: KiB that a block may have; chosen: vectors, threads, stages
    [
        (8, "float16", 99, (1, 32, 2)),
        (256, "bfloat16", 99, (1, 32, 2)),  # 32 vectors of 16 bytes
        (264, "bfloat16", 99, (2, 32, 2)),
        (896, "bfloat16", 99, (2, 64, 2)),  # 112 vectors, two a thread: 56 threads
        (840, "float32", 99, (2, 128, 2)),
        (3584, "bfloat16", 99, (2, 224, 2)),  # 84 KiB
        (4096, "bfloat16", 99, (2, 256, 2)),
        (5120, "bfloat16", 227, (2, 384, 2)),
        (5120, "bfloat16", 99, (2, 384, 1)),
        (8192, "bfloat16", 227, (2, 512, 2)),
        (8192, "bfloat16", 191, (2, 512, 1)),  # two stages of 96 KiB
        (4096, "float32", 192, (2, 512, 1)),  # the kernel declares some itself
        (4096, "float32", 193, (2, 512, 2)),
    ],
)
def test_windows_of_two_are_walked_two_vectors_a_thread(hidden: int, dtype: str, shared: int, chosen: tuple[int, ...]):
    vectors, threads, stages = chosen
    expected = Variant(dtype, True, -1, 2, vectors, threads, 1, stages)
    assert variant_for(StGridPool(), hidden, dtype, shared=shared << 10) == expected
    assert expected.shared_bytes == stages * 6 * vectors * threads * 16 <= shared << 10


@pytest.mark.parametrize(
    ("hidden", "chosen"),  # chosen: vectors, threads
    [(256, (1, 32)), (264, (1, 64)), (896, (1, 128)), (1024, (1, 128)), (1032, (2, 96)), (3584, (2, 224))],
)
def test_a_clip_of_few_windows_is_walked_one_vector_a_thread_as_far_as_128_threads_go(hidden: int, chosen: tuple[int, int]):
    vectors, threads = chosen
    assert variant_for(StGridPool(), hidden, "bfloat16", few=True) == Variant("bfloat16", True, -1, 2, vectors, threads, 1, 2)


@pytest.mark.parametrize(
    ("frames", "multiprocessors", "few"), [(32, 132, True), (49, 132, True), (50, 132, False), (32, 16, False)]
)
def test_windows_are_few_below_64_for_each_multiprocessor(frames: int, multiprocessors: int, few: bool):
    """13x13 windows a frame: 8,448 for 132 multiprocessors are those of 49.99 frames."""
    assert few_windows(make_plan(StGridPool(), frames, 27, 27), multiprocessors) is few


@pytest.mark.parametrize(
    ("window", "hidden", "dtype", "depth", "chosen"),  # chosen: window, vectors, threads, groups
    [
        (2, 8200, "bfloat16", -1, (0, 1, 256, 1)),  # 1,025 vectors: the generic way
        (2, 8, "float16", 2, (2, 2, 32, 4)),
        (2, 896, "bfloat16", 2, (2, 2, 64, 2)),
        (2, 1024, "float32", 2, (2, 2, 128, 1)),
        (2, 1032, "float32", 2, (2, 4, 96, 1)),  # 258 vectors: four a thread from 257 on
        (2, 3584, "bfloat16", 2, (2, 4, 128, 1)),
        (2, 8192, "bfloat16", 2, (2, 4, 256, 1)),
        (2, 8200, "bfloat16", 2, (0, 1, 256, 1)),  # 288 threads would be needed
        (3, 64, "float16", -1, (3, 1, 32, 4)),
        (3, 264, "float32", 2, (3, 1, 96, 1)),
        (3, 4096, "bfloat16", -1, (3, 1, 512, 1)),
        (3, 4104, "bfloat16", -1, (0, 1, 256, 1)),
        (1, 8, "float32", -1, (0, 1, 32, 1)),
        (5, 896, "float16", -1, (0, 1, 128, 1)),
        (4, 2048, "bfloat16", 2, (0, 1, 256, 1)),
    ],
)
def test_other_windows_and_summaries_on_the_fly_are_held_in_registers_or_go_the_generic_way(window, hidden, dtype, depth, chosen):
    for order in (2, 3):
        variant = variant_for(StGridPool((), (), window=window, order=order), hidden, dtype, depth)
        assert variant == Variant(dtype, order == 2, depth, *chosen)
        assert variant.shared_bytes == 0


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [({}, 9), ({"threads": 224}, 2), ({"threads": 32}, 18), ({"threads": 384}, 1), ({"threads": 512}, 1), ({"stages": 0}, 1)],
)
def test_the_blocks_that_must_fit_a_multiprocessor(changes: dict, blocks: int):
    """112 registers a thread of 65,536."""
    values = {"dtype": "bfloat16", "squares": True, "depth": -1, "window": 2, "vectors": 2, "threads": 64, "groups": 1, "stages": 2}
    assert resident_blocks(Variant(**values | changes)) == blocks


WALK = Variant("float16", True, -1, 2, 2, 32, 1, 2)


@pytest.mark.parametrize(
    ("height", "width", "units"),
    # one level tiles four frames as 2x2, of half the height and width; walks of 4 windows, in the summary of 3
    [
        (6, 8, (3, 6)),  # 3 rows of 4 windows and cells: a walk a row; the summary's windows: 2 walks a row
        (7, 11, (8, 6)),  # 4 rows of 6 cells: 2 walks a row; the summary has 3 rows of 5 windows
        (4, 32, (8, 12)),  # 2 rows of 16: 4 walks a row; 6 in the summary
    ],
)
def test_blocks_of_each_launch_of_walks(height, width, units):
    walks, late = units
    assert launches(make_plan(StGridPool((4,), (1,)), 4, height, width), WALK) == (
        (0, 4, walks, 1, 4 * walks),
        (4, 0, 1, late, late),
    )


@pytest.mark.parametrize(("groups", "blocks"), [(1, (40, 15)), (4, (10, 4)), (7, (6, 3))])
def test_blocks_of_each_launch_of_windows_and_cells_one_by_one(groups, blocks):
    """3x3 windows of 9x15 tokens are 15; four frames are pooled to 5x8, and three of them shown."""
    cells, windows = blocks
    plan = make_plan(StGridPool((4,), (1,), window=3), 4, 9, 15)
    assert tuple(map(len, plan.launches)) == (7, 1)
    expected = ((0, 7, cells, 1, 7 * cells), (7, 0, 1, windows, windows))
    assert launches(plan, Variant("float16", True, -1, 3, 1, 32, groups)) == expected


def test_a_pooled_frame_of_another_size_takes_a_block_a_cell():
    plan = make_plan(StGridPool((6,), (1,)), 6, 6, 8)  # six tiles, three rows of two: 2x4 cells each
    first, second = launches(plan, WALK)
    assert first == (0, 11, 8, 1, 88)  # windows: 3 rows of one walk
    assert second == (11, 0, 1, 6, 6)  # one summary: 3 rows of 2 walks


def test_the_generic_way_does_windows_and_cells_of_a_task_one_after_the_other():
    plan = make_plan(StGridPool((4,), (1,)), 4, 6, 10)
    generic = Variant("bfloat16", True, -1, 0, 1, 256, 1)
    assert launches(plan, generic) == ((0, 4, 30, 1, 120), (4, 0, 1, 15, 15))
