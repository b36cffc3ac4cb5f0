from __future__ import annotations

import pytest

from export import compress
from runtime.core.errors import BundleError
from runtime.tools.spec import read_spec


@pytest.mark.parametrize("preset", compress.presets())
def test_every_preset_is_read_as_the_export_expands_it(preset):
    module = compress.make(preset, frames=16, height=8, width=8)
    read = read_spec(module.spec)
    assert [stage.name for stage in read] == [name for name, _ in module.stages]
    for stage, (_, made) in zip(read, module.stages, strict=True):
        for option, values in stage.options.items():
            expected = getattr(made.options, option)
            assert values == (expected if isinstance(expected, tuple) else (expected,))


def test_a_repeated_stage_gets_the_name_that_the_manifest_lists():
    names = [stage.name for stage in read_spec("nsp:window=2+ptg:sizes=4,strides=2+nsp:window=2")]
    assert names == [name for name, _ in compress.make("nsp:window=2+ptg:sizes=4,strides=2+nsp:window=2", 16, 8, 8).stages]


def test_infinity_is_a_number():
    assert read_spec("nsp:order=inf")[0].number("order", 2) == float("inf")


def test_text_that_is_no_spec_is_refused():
    with pytest.raises(BundleError, match="compression spec"):
        read_spec("nsp:window=two")
