"""The op's contract, the NumPy truth against the authors' vectors, and the tables that the kernel follows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from plugin_cases import GOLDEN, golden_case, specs_and_shapes

from plugins.plan import make_plan
from plugins.reference import st_gridpool, temporal_grid
from plugins.spec import StGridPool, attributes_of, not_covered, output_shape, spec_from_attributes, spec_from_text
from runtime.errors import SpecError


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
    assert spec_from_attributes(attributes) == spec
    assert all(value != [] for value in attributes.values())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ptg+nsp+topk", "covers"),
        ("nsp:windows=2", "window"),
        ("nsp:window=two", "not a number"),
        ("ptg:sizes=4,strides=2/4+nsp", "every level"),
        ("nsp:window=2,padding=2", "padding"),
        ("nsp:order=0.5", "order"),
    ],
)
def test_a_spec_that_is_not_the_ops_is_refused_with_the_reason(text: str, words: str):
    with pytest.raises(SpecError, match=words):
        spec_from_text(text)


def test_the_shape_rule_drops_the_remainder_and_refuses_what_does_not_fit():
    assert output_shape(StGridPool(), (32, 27, 27, 896)) == (32, 13, 13, 896)
    assert output_shape(StGridPool(window=3, padding=2), (1, 5, 6, 8)) == (1, 3, 3, 8)
    with pytest.raises(SpecError, match="window 9"):
        output_shape(StGridPool(window=9), (1, 8, 10, 8))
    with pytest.raises(SpecError, match=r"the input is \[8, 0, 6, 8\]; expected"):
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
    assert "frames" in not_covered(StGridPool(), (2000, 27, 27, 8), "float32")


def test_the_default_plan_pools_every_read_frame_once_and_launches_once_a_level_more():
    plan = make_plan(StGridPool(), 32, 27, 27)
    assert len(plan.launches) == 4
    assert plan.depth == 3
    assert [(h, w) for _, h, w, _ in plan.pools] == [(14, 14)] * 22
    assert plan.scratch_tokens == 22 * 14 * 14


def test_a_clip_too_short_for_a_group_needs_one_launch_and_no_scratch():
    plan = make_plan(StGridPool(), 7, 27, 27)
    assert plan.launches == (7,)
    assert plan.scratch_tokens == 0


@settings(max_examples=50, deadline=None)
@given(case=specs_and_shapes())
def test_no_launch_reads_what_it_writes_itself(case: tuple[StGridPool, tuple[int, int, int, int]]):
    spec, (frames, height, width, _) = case
    plan = make_plan(spec, frames, height, width)
    pooled_in, windows, position = {}, [], 0
    for launch, count in enumerate(plan.launches):
        tasks = plan.tasks[position : position + count]
        position += count
        for pool, index, version, _ in tasks:
            assert all(pooled_in[tile] < launch for tile in plan.tiles_of(version))
            windows += [] if pool else [index]
        pooled_in |= {index: launch for pool, index, _, _ in tasks if pool}
    assert sorted(windows) == list(range(frames))
    assert sorted(pooled_in) == list(range(len(plan.pools)))
    assert sum(pool for pool, *_ in plan.tasks) == len(plan.pools), "a frame is pooled twice"
