"""Stages of a vision graph: the tensors that the manifest names, as outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from trt_bundle import make_bundle

from runtime.bundle import Bundle
from runtime.errors import BundleError
from runtime.tools.stages import run_stages


def with_stages(directory: Path, **tensors: str) -> Bundle:
    bundle = make_bundle(directory)
    stages = [{"name": name, "graph": "vision", "tensor": tensor} for name, tensor in tensors.items()]
    return Bundle(
        bundle.path, replace(bundle.manifest, stages=[*stages, {"name": "llm", "graph": "llm/decoder", "tensor": "read"}])
    )


def test_each_stage_is_the_tensor_that_the_manifest_names(tmp_path):
    bundle = with_stages(tmp_path / "b", projector="projected", visual_tokens="visual_tokens")
    pixels = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    weight = onnx.numpy_helper.to_array(onnx.load(bundle.path / "vision.onnx").graph.initializer[1])
    stages = run_stages(bundle, pixels)
    assert stages.ranks == {"projector": 2, "visual_tokens": 2}
    projected = pixels.reshape(4, 96) @ weight
    np.testing.assert_allclose(stages.tensors["projector"], projected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stages.tensors["visual_tokens"], np.tanh(projected), rtol=1e-4, atol=1e-4)
    assert list(run_stages(bundle, pixels, names=["projector"]).tensors) == ["projector"]


def test_a_tensor_that_the_graph_lacks_is_named_with_its_stage(tmp_path):
    bundle = with_stages(tmp_path / "b", projector="projected", pooled="nowhere")
    message = r'vision\.onnx has no tensor "nowhere", which the manifest names for pooled; export the bundle again'
    with pytest.raises(BundleError, match=message):
        run_stages(bundle, np.zeros((2, 3, 8, 8), np.float32))
