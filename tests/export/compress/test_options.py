"""Defaults and ranges of every option, and what the grammar makes of options that no shipped stage has."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from refusal import naming

from export.compress import PRESETS, STAGES, expand, make, presets
from plugins.spec import Parsed, format, option, parse
from runtime.core.errors import SpecError


def test_every_stage_has_the_defaults_that_its_file_states():
    assert {name: expand(name) for name in STAGES if name not in PRESETS} == {
        "bilinear": "bilinear:stride=2",
        "avgpool": "avgpool:window=2",
        "ptg": "ptg:sizes=4/4/4,strides=2/4/8",
        "nsp": "nsp:window=2,temperature=1,order=2",
        "segmean": "segmean:levels=2",
        "topk": "topk:keep=0.5,cell=3,sigma=2",
    }
    assert expand("evs:keep=0.5") == expand("evs") and expand("vidcom2:keep=0.25,temperature=0.01") == expand("vidcom2")
    assert expand("nsp:padding=0") == expand("nsp")


def test_every_preset_is_written_out():
    assert presets() == {
        "llava-ov": "bilinear:stride=2",
        "uniform": "avgpool:window=2",
        "norm": "nsp:window=2,temperature=1,order=2",
        "norm-9x": "nsp:window=3,temperature=1,order=2",
        "st-gridpool": "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2,temperature=1,order=2",
        "st-gridpool-8x": "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2,temperature=1,order=2+topk:keep=0.5,cell=3,sigma=2",
        "grid-topk": "segmean:levels=2+topk:keep=0.25,cell=6,sigma=2",
        "evs": "evs:keep=0.5",
        "vidcom2": "vidcom2:keep=0.25,temperature=0.01",
    }


@pytest.mark.parametrize(
    "spec",
    [
        "bilinear:stride=1", "avgpool:window=1", "nsp:window=1,temperature=0,order=1", "nsp:window=2,temperature=1e6,order=inf",
        "ptg:sizes=1,strides=1", "segmean:levels=1", "segmean:levels=16", "topk:keep=1e-09,cell=1,sigma=0", "topk:keep=1,cell=1,sigma=inf",
        "evs:keep=1e-09", "evs:keep=1", "vidcom2:keep=1e-09,temperature=0.0001", "vidcom2:keep=1,temperature=inf",
    ],
)  # fmt: skip
def test_the_ends_of_a_range_belong_to_it(spec):
    assert expand(spec) == spec.replace("1e6", "1000000")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bilinear:stride=0", "a whole number at least 1"),
        ("nsp:temperature=1000001", "a number at least 0 and at most 1e+06"),
        ("nsp:temperature=-1e-9", "a number at least 0 and at most 1e+06"),
        ("nsp:order=0.999", "a number at least 1"),
        ("nsp:order=nan", "a number at least 1"),
        ("nsp:padding=-1", "a whole number at least 0"),
        ("segmean:levels=17", "a whole number at least 1 and at most 16"),
        ("evs:keep=1.001", "a number more than 0 and at most 1"),
        ("topk:keep=1.001", "a number more than 0 and at most 1"),
        ("topk:keep=0", "a number more than 0 and at most 1"),
        ("topk:sigma=-0.001", "a number at least 0"),
        ("vidcom2:keep=1.001", "a number more than 0 and at most 1"),
        ("vidcom2:temperature=0.000099", "a number at least 0.0001"),
    ],
)
def test_what_lies_outside_is_refused_with_the_range(spec, expected):
    stage, option, _ = re.split("[:=]", spec)
    with pytest.raises(SpecError) as raised:
        expand(spec)
    assert stage in str(raised.value) and f"{option}=" in str(raised.value) and str(raised.value).endswith(expected)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("nsp:window=2/3", "a whole number"),
        ("ptg:sizes=4/", "a whole number"),
        ("ptg:sizes=4.5/4", "a whole number"),
        ("topk:keep=0.5/1", "a number"),
        ("topk:keep=half", "a number"),
    ],
)
def test_what_is_no_number_is_refused_with_its_option(item, expected):
    stage, _, text = item.partition(":")
    with pytest.raises(SpecError, match=f"{stage}.*{text} is not {expected}"):
        expand(item)


@dataclass(frozen=True)
class Fraction:
    shares: tuple[float, ...] = option((0.5,), "one share")
    rings: int = option(0, "rings", only_if_set=True)


@dataclass(frozen=True)
class Rare:
    level: int = option(3, "level", only_if_set=True)


OPTIONS = {"fraction": Fraction, "rare": Rare}


@pytest.mark.parametrize(
    ("text", "stages", "expanded"),
    [
        ("fraction:shares=0.25/1", [Parsed("fraction", Fraction((0.25, 1.0)))], "fraction:shares=0.25/1"),
        ("fraction", [Parsed("fraction", Fraction())], "fraction:shares=0.5"),
        ("rare", [Parsed("rare", Rare())], "rare"),
        (" rare : level = -4 + fraction:rings=1 ", [Parsed("rare", Rare(-4)), Parsed("fraction", Fraction(rings=1))],
         "rare:level=-4+fraction:shares=0.5,rings=1"),
        ("both", [Parsed("rare", Rare(5)), Parsed("fraction", Fraction())], "rare:level=5+fraction:shares=0.5"),
    ],
)  # fmt: skip
def test_options_of_any_kind_are_read_and_written(text, stages, expanded):
    parsed = parse(text, OPTIONS, {"both": "rare:level=5+fraction"})
    assert parsed == stages and all(type(share) is float for s in parsed if s.name == "fraction" for share in s.options.shares)
    assert format(parsed) == expanded
    assert parse(expanded, OPTIONS, {}) == stages


@pytest.mark.parametrize(
    ("spec", "fits", "misfit"),
    [
        ("ptg:sizes=4,strides=1", (2, 2), [(1, 2), (2, 1)]),
        ("nsp:window=3,padding=1", (1, 1), []),
        ("avgpool:window=4", (4, 5), [(3, 5), (5, 3)]),
        ("bilinear:stride=4", (5, 4), [(3, 5), (5, 3)]),
        ("topk:keep=0.25,cell=2", (4, 4), [(1, 4), (3, 3)]),
        ("vidcom2:keep=0.25", (2, 2), [(1, 3)]),
    ],
)
def test_the_smallest_grid_that_a_stage_takes(spec, fits, misfit):
    make(spec, 4, *fits)
    for grid in misfit:
        with pytest.raises(SpecError):
            make(spec, 4, *grid)


@pytest.mark.parametrize("frames", [4, 3])
def test_a_pyramid_of_segments_needs_the_frames_of_its_widest_one(frames):
    if frames == 4:
        assert make("segmean:levels=2", 4, 1, 1).num_tokens == 3
    else:
        with pytest.raises(SpecError, match=naming("segmean", "levels 2", "4 frames", 3)):
            make("segmean:levels=2", frames, 1, 1)
