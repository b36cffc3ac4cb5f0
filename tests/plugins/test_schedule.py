"""The schedule without torch against torch's own linspace and round."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plugins.op import tile_layout
from plugins.schedule import Group, ptg_schedule, summary_levels


def test_sampled_frames_are_torchs_for_every_clip_up_to_512():
    for frames in range(1, 513):
        for stride in {1, 2, 3, 4, 5, 7, 8, 11, 16, 31, 64, frames // 2 or 1, frames}:
            n = frames // stride
            expected = torch.round(torch.linspace(0, frames, n + 1)[1:] - 1).int().tolist() if n else []
            groups = ptg_schedule(frames, (1,), (stride,))[0]
            assert [group.writes for group in groups] == expected, (frames, stride)


def test_the_default_schedule_of_32_frames():
    first, second, third = ptg_schedule(32, (4, 4, 4), (2, 4, 8))
    assert first == [Group(tuple(range(start + 1, start + 8, 2)), start + 7) for start in (0, 8, 16, 24)]
    assert second == [Group((3, 7, 11, 15), 15), Group((19, 23, 27, 31), 31)]
    assert third == [Group((7, 15, 23, 31), 31)]


def test_leftover_samples_form_no_group():
    assert ptg_schedule(13, (4,), (2,)) == [[Group((1, 3, 6, 8), 8)]]
    assert ptg_schedule(7, (4, 4, 4), (2, 4, 8)) == [[], [], []]


def test_a_stride_longer_than_the_clip_samples_nothing_and_divides_by_nothing():
    with np.errstate(all="raise"):
        assert ptg_schedule(7, (1, 2), (8, 7)) == [[], []]
        assert ptg_schedule(8, (1,), (8,)) == [[Group((7,), 7)]]


def test_a_level_needs_a_size_and_a_stride():
    with pytest.raises(ValueError):
        ptg_schedule(8, (4, 4), (2,))


@pytest.mark.parametrize(
    ("size", "layout"), [(1, (1, 1)), (2, (2, 1)), (3, (3, 1)), (4, (2, 2)), (6, (3, 2)), (9, (3, 3)), (12, (4, 3)), (7, (7, 1))]
)
def test_tiles_are_as_square_as_they_can_be(size, layout):
    assert tile_layout(size) == layout


def test_levels_are_those_that_write_into_a_frame():
    assert summary_levels(32, (4, 4, 4), (2, 4, 8)) == {7: [1], 15: [1, 2], 23: [1], 31: [1, 2, 3]}
    assert summary_levels(7, (4, 4, 4), (2, 4, 8)) == {}
    assert set(summary_levels(40, (2, 3), (3, 5))) == {g.writes for level in ptg_schedule(40, (2, 3), (3, 5)) for g in level}
