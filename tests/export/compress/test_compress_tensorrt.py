"""NVIDIA's own parser and builder take every preset at full size: 32 frames of 27x27 tokens. No GPU is needed."""

from __future__ import annotations

import pytest
import torch

from export.compress import PRESETS, make

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'st-gridpool[rtx]'")


SPECS = [*sorted(PRESETS), "topk:keep=0.9", "nsp:window=3,order=inf,padding=1"]
HALF = ["st-gridpool-8x", "vidcom2"]


@pytest.mark.parametrize(("spec", "dtype"), [*((s, torch.float32) for s in SPECS), *((s, torch.float16) for s in HALF)])
def test_tensorrt_builds(spec, dtype, to_onnx):
    model = to_onnx(make(spec, 32, 27, 27), torch.zeros(32, 27, 27, 16, dtype=dtype))
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert builder.build_serialized_network(network, builder.create_builder_config()) is not None
