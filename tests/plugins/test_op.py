"""The op's contract, the NumPy truth against the authors' vectors, and the tables that the kernel follows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from plugin_cases import GOLDEN, golden_case, specs_and_shapes
from refusal import naming

from plugins.errors import SpecError
from plugins.op import StGridPool, attributes_of, not_covered, output_shape, spec_from_text
from plugins.plan import POOL, WINDOWS, make_plan
from plugins.reference import st_gridpool, temporal_grid


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_reference_repeats_the_authors_code(path: Path):
    spec, x, after_ptg, tokens = golden_case(path)
    np.testing.assert_allclose(temporal_grid(x, spec), after_ptg, rtol=1e-6, atol=1e-6 * np.abs(x).max())
    np.testing.assert_allclose(st_gridpool(x, spec), tokens, rtol=1e-6, atol=1e-6 * np.abs(x).max())


@settings(max_examples=50, deadline=None)
@given(case=specs_and_shapes())
def test_text_and_attributes_give_the_spec_back(case: tuple[StGridPool, tuple[int, int, int, int]]):
    spec, _ = case
    assert spec_from_text(str(spec)) == spec
    attributes = attributes_of(spec)
    lists = {name: tuple(attributes.get(name, ())) for name in ("sizes", "strides")}
    assert StGridPool(**attributes | lists) == spec
    assert all(value != [] for value in attributes.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ptg+nsp+topk", "covers"),
        ("nsp:windows=2", "window"),
        ("nsp:window=two", "whole number"),
        ("ptg:sizes=4,strides=2/4+nsp", "strides"),
        ("nsp:window=2,padding=2", "padding"),
        ("nsp:order=0.5", "order"),
    ],
)
def test_a_spec_that_is_not_the_ops_is_refused_with_the_reason(text: str, words: str):
    with pytest.raises(SpecError, match=words):
        spec_from_text(text)


def test_what_is_left_out_is_the_papers():
    assert StGridPool() == StGridPool((4, 4, 4), (2, 4, 8), 2, 1.0, 2.0, 0) == spec_from_text("ptg+nsp")
    assert spec_from_text("nsp") == StGridPool((), (), 2, 1.0, 2.0, 0)
    assert str(StGridPool()) == "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2,temperature=1,order=2"
    assert str(StGridPool((), (), 3, 0.5, math.inf, 1)) == "nsp:window=3,temperature=0.5,order=inf,padding=1"
    assert attributes_of(StGridPool((6,), (3,), 3, 0, 1, 2)) == {
        "sizes": [6], "strides": [3], "window": 3, "temperature": 0.0, "order": 1.0, "padding": 2,
    }  # fmt: skip
    assert spec_from_text(" ptg:sizes = 2/3 , strides=1/5 + nsp: order = 3") == StGridPool((2, 3), (1, 5), order=3)


@pytest.mark.parametrize(
    "values",
    [
        {"sizes": (1,), "strides": (1,)}, {"window": 1}, {"order": 1}, {"order": math.inf}, {"temperature": 0}, {"temperature": 1e6},
        {"padding": 1}, {"window": 3, "padding": 2},
    ],
)  # fmt: skip
def test_the_least_and_the_most_that_make_sense(values: dict):
    spec = StGridPool(**values)
    assert all(getattr(spec, name) == value for name, value in values.items())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sizes": (4, 0, 4)}, "sizes=4/0/4"),
        ({"strides": (0, 4, 8)}, "strides=0/4/8"),
        ({"sizes": (4,), "strides": ()}, "sizes=4"),
        ({"window": 0}, "window=0"),
        ({"order": 0.99}, "order=0.99"),
        ({"order": math.nan}, "order=nan"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"padding": -1}, "padding=-1"),
        ({"padding": 2}, "padding=2"),
        ({"window": 1, "padding": 1}, "padding=1"),
    ],
)
def test_what_makes_no_sense_on_any_grid_is_refused(values: dict, words: str):
    with pytest.raises(SpecError, match=words):
        StGridPool(**values)


@pytest.mark.parametrize(
    ("spec", "grid", "windows"),
    [
        (StGridPool((), (), window=1), (1, 1), (1, 1)),
        (StGridPool((), (), window=5), (5, 5), (1, 1)),
        (StGridPool((), (), window=5, padding=2), (1, 1), (1, 1)),
        (StGridPool((7,), (1,)), (7, 2), (3, 1)),
        (StGridPool((6,), (1,), window=1), (3, 2), (3, 2)),
    ],
)
def test_the_smallest_grids_that_fit(spec: StGridPool, grid: tuple[int, int], windows: tuple[int, int]):
    assert output_shape(spec, (1, *grid, 1)) == (1, *windows, 1)
    for smaller in ((grid[0] - 1, grid[1]), (grid[0], grid[1] - 1)):
        with pytest.raises(SpecError):
            output_shape(spec, (1, *smaller, 1))


@pytest.mark.parametrize("axis", range(4))
def test_every_axis_has_at_least_one(axis: int):
    shape = [2, 3, 4, 5]
    shape[axis] = 0
    with pytest.raises(SpecError, match=naming(shape, "[T, H, W, D]")):
        output_shape(StGridPool((), (), window=1), shape)


def test_the_shape_rule_drops_the_remainder_and_refuses_what_does_not_fit():
    assert output_shape(StGridPool(), (32, 27, 27, 896)) == (32, 13, 13, 896)
    assert output_shape(StGridPool(window=3, padding=2), (1, 5, 6, 8)) == (1, 3, 3, 8)
    with pytest.raises(SpecError, match="window 9"):
        output_shape(StGridPool(window=9), (1, 8, 10, 8))
    with pytest.raises(SpecError, match=naming("[8, 0, 6, 8]", "[T, H, W, D]")):
        output_shape(StGridPool(), (8, 0, 6, 8))
    with pytest.raises(SpecError, match="tiled 7x1"):
        output_shape(StGridPool(sizes=(7,), strides=(1,)), (8, 6, 6, 8))


def test_what_the_kernel_declines_has_a_reason():
    shape = (32, 27, 27, 896)
    assert not_covered(StGridPool(), shape, "bfloat16") == ""
    assert not_covered(StGridPool(order=math.inf), shape, "float16") == ""
    assert "multiple of 8" in not_covered(StGridPool(), (32, 27, 27, 892), "float32")
    assert "float64" in not_covered(StGridPool(), shape, "float64")
    assert "order 9" in not_covered(StGridPool(order=9), shape, "float32")
    assert "window 33" in not_covered(StGridPool(window=33), shape, "float32")
    assert "order 8.5" in not_covered(StGridPool(order=8.5), shape, "float32")
    assert "1025 frames" in not_covered(StGridPool(), (1025, 27, 27, 8), "float32")
    assert not_covered(StGridPool(window=32, order=8), (1024, 64, 64, 8), "float32") == ""
    for other in ((27, 27, 8), (1, 32, 27, 27, 8)):
        assert not_covered(StGridPool(), other, "float32").endswith("expected [T, H, W, D]")


def test_the_default_plan_pools_every_read_frame_once_and_launches_once_a_level_more():
    plan = make_plan(StGridPool(), 32, 27, 27)
    assert len(plan.launches) == 4
    assert plan.depth == 3
    assert [(h, w) for _, h, w, _ in plan.pools] == [(14, 14)] * 22
    assert plan.scratch_tokens == 22 * 14 * 14


def test_a_clip_too_short_for_a_group_needs_one_launch_and_no_scratch():
    plan = make_plan(StGridPool(), 7, 27, 27)
    assert tuple(map(len, plan.launches)) == (7,)
    assert plan.scratch_tokens == 0


@settings(max_examples=50, deadline=None)
@given(case=specs_and_shapes())
def test_no_launch_reads_what_it_writes_itself(case: tuple[StGridPool, tuple[int, int, int, int]]):
    spec, (frames, height, width, _) = case
    plan = make_plan(spec, frames, height, width)
    pooled_in, windows = {}, []
    for launch, tasks in enumerate(plan.launches):
        assert all(pooled_in[tile] < launch for _, _, version, _ in tasks for tile in plan.tiles_of(version))
        assert [version >= frames for _, _, version, _ in tasks] == sorted(version >= frames for _, _, version, _ in tasks)
        windows += [index for kind, index, _, _ in tasks if kind != POOL]
        pools = [(index if kind == POOL else pool, version) for kind, index, version, pool in tasks if kind != WINDOWS]
        assert all(plan.pools[pool][0] == version for pool, version in pools)
        assert not pooled_in.keys() & {pool for pool, _ in pools}, "a frame is pooled twice"
        pooled_in |= {pool: launch for pool, _ in pools}
    assert sorted(windows) == list(range(frames))
    assert sorted(pooled_in) == list(range(len(plan.pools)))
