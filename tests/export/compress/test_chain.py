"""The chain: token counts, stage names, intermediate outputs, and the authors' vectors end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusal import naming

from export.compress import PRESETS, make
from runtime.core.errors import SpecError

PER_FRAME = {
    "llava-ov": 196,
    "uniform": 169,
    "norm": 169,
    "norm-9x": 81,
    "st-gridpool": 169,
    "st-gridpool-8x": 84,
    "evs": 364.5,
    "vidcom2": 182,
}


def spec_of(golden) -> str:
    levels = "/".join(map(str, golden["grid_size_list"])), "/".join(map(str, golden["grid_freq_list"]))
    nsp = "nsp:window={kernel_size},temperature={temp},order={p},padding={padding}".format(**golden)
    return f"ptg:sizes={levels[0]},strides={levels[1]}+{nsp}" if levels[0] else nsp


def test_authors_vectors_match(golden):
    x = torch.from_numpy(golden["x"])
    module = make(spec_of(golden), *x.shape[:3])
    for name, expected in (("ptg", golden["after_ptg"]), ("nsp", golden["tokens"])):
        stage = dict(module.stages).get(name)
        x = stage(x) if stage else x
        assert x.shape == expected.shape
        assert np.abs(x.numpy() - expected).max() <= 1e-6 * np.abs(expected).max()
    assert torch.equal(module(torch.from_numpy(golden["x"])), x.reshape(module.num_tokens, -1))


@pytest.mark.parametrize("preset", sorted(PER_FRAME))
def test_tokens_per_frame_at_27x27(preset):
    module = make(preset, 32, 27, 27)
    assert module.num_tokens == PER_FRAME[preset] * 32
    assert module(torch.randn(32, 27, 27, 4)).shape == (module.num_tokens, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("preset", ["llava-ov", "uniform", "st-gridpool-8x", "grid-topk", "evs", "vidcom2"])
def test_the_output_has_the_inputs_dtype_even_when_the_module_was_cast(preset, dtype):
    torch.manual_seed(0)
    module = make(preset, 8, 9, 8).to(dtype)
    x = torch.randn(8, 9, 8, 6).to(dtype)
    exact = make(preset, 8, 9, 8)(x.float())
    result = module(x)
    assert result.dtype == dtype
    # a threshold's side may flip for a token or two in half precision; nearly all rows are the same tokens
    close = torch.isclose(result.float(), exact, rtol=2e-2, atol=2e-2).all(-1).float().mean()
    assert close > {torch.float32: 0.999, torch.float16: 0.9, torch.bfloat16: 0.5}[dtype]


@pytest.mark.parametrize("preset", ["norm", "st-gridpool-8x", "evs", "vidcom2"])
def test_large_half_precision_activations_do_not_overflow(preset):
    x = torch.full((4, 6, 6, 3584), 2000.0, dtype=torch.float16)  # each token's norm is 119,733, fp16 ends at 65,504
    assert torch.equal(make(preset, 4, 6, 6)(x).unique(), torch.tensor([2000.0], dtype=torch.float16))


def test_children_are_named_after_their_stages():
    module = make("nsp:window=2+ptg+nsp:window=2+topk:cell=2", 8, 8, 8)
    assert [name for name, _ in module.stages] == ["nsp", "ptg", "nsp_2", "topk"] == [name for name, _ in module.named_children()]
    assert "ptg.level.1" in dict(module.named_modules())


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"made for \[8, 6, 6, D\]"):
        make("nsp", 8, 6, 6)(torch.zeros(8, 6, 7, 3))


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("avgpool:window=2+nsp:window=2", ["avgpool", "nsp"]),
        ("avgpool:window=1+avgpool:window=2+avgpool:window=1", ["avgpool", "avgpool_2", "avgpool_3"]),
        ("ptg:sizes=4,strides=2", ["ptg"]),
        ("ptg:sizes=4,strides=2+nsp+avgpool", ["ptg", "nsp", "avgpool"]),
        ("ptg:sizes=4,strides=2+topk:keep=0.5", ["ptg", "topk"]),
        ("ptg:sizes=4,strides=2+ptg:sizes=4,strides=1+nsp", ["ptg", "ptg_2", "nsp"]),
        ("ptg:sizes=4,strides=2+avgpool+ptg:sizes=4,strides=2+avgpool", ["ptg", "avgpool", "ptg_2", "avgpool_2"]),
        ("ptg:sizes=4,strides=4+nsp", ["ptg", "nsp"]),  # too short a clip for any summary
    ],
)
def test_a_chain_is_its_stages_one_after_the_other(spec, names):
    torch.manual_seed(0)
    x = torch.randn(9, 8, 10, 3)
    module = make(spec, 9, 8, 10)
    outputs = list(module.outputs(x))
    assert [name for name, _ in outputs] == [name for name, _ in module.stages] == names
    expected = x
    for _, stage in module.stages:
        expected = stage(expected)
    torch.testing.assert_close(outputs[-1][1], expected)
    assert torch.equal(module(x), outputs[-1][1].reshape(module.num_tokens, 3))


def test_behind_a_ptg_its_summaries_are_what_a_frame_wise_stage_gets():
    x = torch.randn(8, 8, 10, 3)
    module = make("ptg:sizes=4/2,strides=1/4+nsp", 8, 8, 10)  # frames 3 and 7 become summaries, and 7 again
    (_, summaries), (_, pooled) = module.outputs(x)
    assert torch.equal(summaries, module.ptg(x)[[3, 7]])
    assert pooled.shape == (8, 4, 5, 3)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_compressor_has_no_weights_and_computes_on_the_device_of_its_tokens(preset):
    module = make(preset, 8, 12, 12)
    assert not module.state_dict()
    assert module.to("meta")(torch.empty(8, 12, 12, 4, device="meta")).shape == (module.num_tokens, 4)


@pytest.mark.parametrize("grid", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_a_clip_of_nothing_is_refused(grid):
    with pytest.raises(SpecError, match="{} frames of {}x{} tokens".format(*grid)):
        make("ptg", *grid)


@pytest.mark.parametrize("shape", [(8, 6, 6), (8, 6, 6, 3, 1), (7, 6, 6, 3), (8, 7, 6, 3)])
def test_tokens_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=naming(list(shape), "[8, 6, 6, D]")):
        make("nsp", 8, 6, 6)(torch.zeros(shape))


def test_the_grid_is_that_of_the_last_stage():
    module = make("segmean:levels=1+avgpool+ptg", 7, 8, 10)
    assert (module.grid_in, module.num_tokens) == ((7, 8, 10), 4 * 4 * 5)
    grids = [(stage.grid_in, stage.grid_out, stage.num_tokens) for _, stage in module.stages]
    assert grids == [((7, 8, 10), (4, 8, 10), 320), ((4, 8, 10), (4, 4, 5), 80), ((4, 4, 5), (4, 4, 5), 80)]
    assert [stage.grid_out for _, stage in make("evs", 2, 3, 3).stages] == [None]
