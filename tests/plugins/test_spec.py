"""The spec grammar: what it takes, what it writes out, and how it refuses."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.compress import PRESETS, STAGES, expand, make, presets
from export.listing import listing_text, options_table
from plugins.errors import SpecError
from plugins.spec import Parsed, format, parse, unique_names

OPTIONS = {name: stage.Options for name, stage in STAGES.items()}


def test_st_gridpool_expands_as_the_design_says():
    assert expand("st-gridpool") == "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2,temperature=1,order=2"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_expansion_is_a_fixed_point_and_the_module_carries_it(name):
    spec = expand(name)
    assert expand(spec) == spec == presets()[name] == make(name, 8, 8, 8).spec


def test_a_preset_stands_for_its_stages_inside_a_chain():
    assert expand("uniform + topk:keep=.25") == "avgpool:window=2+topk:keep=0.25,cell=3,sigma=2"


def test_padding_is_written_only_when_it_is_used():
    assert expand("nsp:padding=1,window=3") == "nsp:window=3,temperature=1,order=2,padding=1"


def test_order_may_be_infinite():
    assert expand("nsp:order=inf") == "nsp:window=2,temperature=1,order=inf"
    assert make("nsp:order=inf", 1, 4, 4).stages[0][1].options.order == math.inf


positive = st.floats(min_value=1e-4, max_value=1, exclude_min=True)
lists = st.lists(st.integers(1, 99), min_size=1, max_size=5)


@given(
    st.lists(
        st.one_of(
            st.builds(
                lambda w, t, p, r: Parsed("nsp", OPTIONS["nsp"](w, t, p, min(r, w - 1))),
                st.integers(1, 9),
                st.floats(0, 1e6),
                st.floats(1),
                st.integers(0, 3),
            ),
            st.builds(lambda k, c, s: Parsed("topk", OPTIONS["topk"](k, c, s)), positive, st.integers(1, 9), st.floats(0)),
            st.builds(lambda k, t: Parsed("vidcom2", OPTIONS["vidcom2"](k, t)), positive, st.floats(min_value=1e-4)),
            lists.map(lambda sizes: Parsed("ptg", OPTIONS["ptg"](tuple(sizes), tuple(reversed(sizes))))),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_reads_back_equal(stages):
    assert parse(format(stages), OPTIONS, {}) == stages


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty"),
        ("nps", 'did you mean "nsp"'),
        ("st-gridpol", 'did you mean "st-gridpool"'),
        ("nsp+", 'no compression stage or preset ""'),
        ("nsp:windw=2", 'did you mean "window"'),
        ("nsp:window=2,window=3", "twice"),
        ("nsp:window", "key=value"),
        ("nsp:", "key=value"),
        ("nsp:=2", '"=2" is not an option'),
        ("nsp:window= ", '"window=" is not an option'),
        ("nsp:window=2,", "key=value"),
        ("nsp:window=two", "not a whole number"),
        ("nsp:window=2.5", "not a whole number"),
        ("nsp:temperature=nan", "out of range"),
        ("nsp:window=0", "at least 1"),
        ("nsp:order=0.5", "at least 1"),
        ("topk:keep=0", "keep=0 is out of range"),
        ("topk:keep=1.5", "at most 1"),
        ("ptg:sizes=4/4,strides=2", "ptg: sizes=4/4 and strides=2 "),
        ("ptg:sizes=4/0,strides=2/4", "out of range"),
        ("ptg:sizes=4//4", "not a whole number"),
        ("st-gridpool:window=3", "takes no options"),
        ("evs+nsp", "must be last"),
        ("evs+topk", "must be last"),
        ("nsp:window=9", "window 9 does not fit a grid of 8x8"),
        ("avgpool:window=9", "window 9 does not fit a grid of 8x8"),
        ("bilinear:stride=9", "stride 9 does not fit a grid of 8x8"),
        ("topk:cell=9", "cell 9 does not fit a grid of 8x8"),
        ("avgpool:window=4+nsp:window=3", "window 3 does not fit a grid of 2x2"),
        ("ptg:sizes=97,strides=1", "97x1, which does not fit a grid of 8x8"),
        ("nsp:padding=2", "padding=2"),
        ("topk:keep=0.1,cell=2", "needs 16"),
        ("vidcom2:keep=0.01", "no token"),
        ("segmean:levels=4", "spans 16 frames, the clip has 8"),
    ],
)
def test_a_fault_is_one_line_that_says_what_is_wrong(spec, message):
    with pytest.raises(SpecError) as error:
        make(spec, 8, 8, 8)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spec",
    [
        "avgpool:window=0", "bilinear:stride=0", "nsp:window=0", "nsp:temperature=-1", "nsp:temperature=1e7", "nsp:order=0.5", "nsp:padding=-1",
        "ptg:sizes=0,strides=2", "ptg:sizes=4,strides=0", "segmean:levels=0", "segmean:levels=17", "evs:keep=0", "evs:keep=1.1",
        "topk:keep=0", "topk:keep=1.1", "topk:cell=0", "topk:sigma=-1", "vidcom2:keep=0", "vidcom2:keep=1.1", "vidcom2:temperature=0",
    ],
)  # fmt: skip
def test_every_option_has_its_range(spec):
    with pytest.raises(SpecError, match="is out of range; expected a"):
        make(spec, 8, 8, 8)


def test_an_empty_clip_is_refused():
    with pytest.raises(SpecError, match="0 frames"):
        make("nsp", 0, 8, 8)


def test_the_listing_names_every_option_with_its_default_and_help():
    listed = options_table()["stages"]
    assert listed.keys() == STAGES.keys()
    assert list(listed["nsp"]) == ["window", "temperature", "order", "padding"] and listed["ptg"]["strides"] == "2/4/8"
    lines = listing_text().splitlines()
    for name, options in listed.items():
        (at,) = [number for number, line in enumerate(lines) if re.fullmatch(rf"  {name} +\S.*\.", line)]
        for (option, default), line in zip(options.items(), lines[at + 1 :], strict=False):
            assert re.fullmatch(rf"    {option}={default} +\S.*", line)


def test_stages_of_another_kind_are_accepted_unread_on_request():
    stages = parse("segmean:levels=two+nsp:window=3", {"nsp": OPTIONS["nsp"]}, others=True)
    assert stages == [Parsed("segmean", None), Parsed("nsp", OPTIONS["nsp"](window=3))]
    with pytest.raises(SpecError, match="segmean"):
        parse("segmean+nsp", {"nsp": OPTIONS["nsp"]})


def test_a_repeated_stage_gets_the_name_that_its_module_has():
    spec = "nsp:window=2+ptg:sizes=4,strides=2+nsp:window=2"
    names = unique_names([stage.name for stage in parse(spec, OPTIONS)])
    assert names == ["nsp", "ptg", "nsp_2"] == [name for name, _ in make(spec, 16, 8, 8).stages]
