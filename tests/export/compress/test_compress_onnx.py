"""Every stage through the exporter: equal numbers in ONNX Runtime, static shapes, operators that TensorRT takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.compress import PRESETS, make

SPECS = [
    *sorted(PRESETS),
    "nsp:window=3,temperature=0.5,order=inf,padding=1",
    "nsp:order=1",
    "nsp:order=3",
    "ptg:sizes=6/4,strides=1/2",
    "segmean:levels=3",
    "bilinear:stride=3",
]
BROADEST = ["llava-ov", "st-gridpool-8x", "vidcom2"]
REFUSED = {"GatherND", "ScatterND", "ScatterElements", "NonZero", "TopK", "Loop", "If", "Unique", "Compress", "Range", "CumSum"}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3}


@pytest.mark.parametrize(
    ("spec", "opset"), [*((spec, 18) for spec in SPECS), *((spec, 20) for spec in BROADEST), ("st-gridpool", 19)]
)
def test_onnx_runtime_computes_what_torch_computed(spec, opset, to_onnx, run_onnx):
    torch.manual_seed(0)
    x = torch.randn(13, 9, 8, 6)
    module = make(spec, 13, 9, 8)
    model = to_onnx(module, x, opset)
    np.testing.assert_allclose(run_onnx(model, x), module(x).numpy(), rtol=1e-5, atol=TOLERANCE[torch.float32])
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [module.num_tokens, 6]
    assert not REFUSED & {node.op_type for node in model.graph.node}
    assert {entry.domain for entry in model.opset_import} == {""}


@pytest.mark.parametrize("spec", ["llava-ov", "st-gridpool", "uniform", "topk", "segmean"])
def test_half_precision_graphs_agree(spec, to_onnx, run_onnx):
    torch.manual_seed(0)
    x = torch.randn(8, 9, 8, 6).half()
    module = make(spec, 8, 9, 8)
    model = to_onnx(module, x)
    result = run_onnx(model, x)
    assert result.dtype == np.float16
    large = torch.full_like(x, 2000.0)  # the squares alone overflow fp16
    assert np.isfinite(run_onnx(model, large)).all()
    np.testing.assert_allclose(result, module(x).numpy(), rtol=TOLERANCE[torch.float16], atol=TOLERANCE[torch.float16])


@pytest.mark.parametrize("spec", ["evs:keep=0.5", "topk:keep=0.5", "vidcom2:keep=0.5"])
def test_a_still_clip_selects_the_same_tokens(spec, to_onnx, run_onnx):
    x = torch.randn(1, 6, 6, 3).expand(4, 6, 6, 3).contiguous()
    module = make(spec, 4, 6, 6)
    np.testing.assert_allclose(run_onnx(to_onnx(module, x), x), module(x).numpy(), rtol=1e-5, atol=1e-5)


def test_scopes_name_the_stages_and_levels(to_onnx):
    model = to_onnx(make("st-gridpool", 32, 6, 6), torch.randn(32, 6, 6, 4))
    scopes = {entry.value for node in model.graph.node for entry in node.metadata_props if entry.key.endswith("name_scopes")}
    for scope in ("'ptg'", "'ptg.level.1'", "'ptg.level.3'", "'nsp'"):
        assert any(scope in listed for listed in scopes), scope
