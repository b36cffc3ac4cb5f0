"""What the compression tests share: a stage through the exporter and ONNX Runtime, and the golden vectors."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def to_onnx():
    """(module, x, opset) -> ONNX model, traced as the exporter traces."""

    def convert(module: torch.nn.Module, x: torch.Tensor, opset: int = 18):
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        return torch.onnx.export(module.eval(), (x,), dynamo=True, opset_version=opset, verbose=False).model_proto

    return convert


@pytest.fixture
def run_onnx():
    """(ONNX model, x) -> the graph's output, computed by ONNX Runtime on the CPU."""
    import onnxruntime

    def run(model, x: torch.Tensor) -> np.ndarray:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]

    return run


@pytest.fixture(params=sorted(path.stem for path in GOLDEN.glob("*.npz")))
def golden(request):
    """One set of vectors that the authors' code made: x, after_ptg, tokens and its arguments."""
    return np.load(GOLDEN / f"{request.param}.npz")
