"""What is put together before a trace, and what the exporter is asked for, with a stand-in for torch's exporter."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from torch import nn

from export import trace
from export.trace import trace_decoder, trace_vision


class FakeVision(nn.Linear):
    """A module with the names of two stages."""

    def __init__(self, input_name: str):
        super().__init__(2, 2)
        self.input_name = input_name

    def stage_names(self) -> list[str]:
        return ["vision/encoder", "compress/rows"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the exporter was asked for; it writes an empty model, and chatters."""
    seen = SimpleNamespace(module=None, args=None, options=None, saved=None, grad=None, chatter=[])

    class Handler(logging.Handler):
        def emit(self, record):
            seen.chatter.append(record.getMessage())

    class Program:
        def save(self, path: str, external_data: bool) -> None:
            seen.saved = external_data
            onnx.save(onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(name="traced")), path)

    def export(module, args, **options):
        seen.module, seen.args, seen.options, seen.grad = module, args, options, torch.is_grad_enabled()
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).warning("%s chatters", name)
            logging.getLogger(name).error("%s fails", name)
        warnings.warn("a conversion", stacklevel=1)
        return Program()

    monkeypatch.setattr(torch.onnx, "export", export)
    handler = Handler()
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    for logger in loggers:
        logger.addHandler(handler)
    yield seen
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", ["pixel_values", "frames"])
def test_a_vision_graph_has_its_stages_as_outputs(asked: SimpleNamespace, tmp_path: Path, name: str):
    vision = FakeVision(name)
    path, inputs = tmp_path / "a" / "b" / "vision.onnx", torch.zeros(2, 3, 2, 3)
    for _ in range(2):  # over what a trace before has left
        traced = trace_vision(vision.train(), inputs, path, 19)
    assert traced.graph.name == "traced"
    assert asked.module is vision and not vision.training and asked.args == (inputs,) and not asked.grad
    assert asked.options == {
        "dynamo": True, "opset_version": 19, "input_names": [name], "dynamic_shapes": None, "verbose": False,
        "output_names": ["visual_tokens", "vision/encoder/output", "compress/rows/output"],
    }  # fmt: skip


class Decoder(nn.Module):
    hidden_size = 6

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.lm_head, self.layers = nn.Linear(6, 9, dtype=dtype), [None]

    def empty_cache(self):
        return (torch.zeros(1, 2, 8, 3), torch.zeros(1, 2, 8, 3))


@pytest.mark.parametrize(("attention", "opset"), [("portable", 20), ("standard", 24)])
def test_a_decoder_is_traced_with_any_length_and_any_past(asked: SimpleNamespace, tmp_path: Path, attention: str, opset: int):
    decoder = Decoder(torch.float16)
    assert trace_decoder(decoder, tmp_path / "decoder.onnx", attention).graph.name == "traced"
    embeddings, positions, past, mask = asked.args
    new, old = embeddings.shape[1], mask.shape[1] - embeddings.shape[1]
    assert embeddings.shape == (1, new, 6) and embeddings.dtype == torch.float16
    assert positions.tolist() == [list(range(old, old + new))]
    assert mask.tolist() == [[1] * (old + new)] and mask.dtype == torch.int64
    assert len({1, 6, old, new, old + new}) == 5, "equal sizes would become one"
    assert [tensor.shape for tensor in past] == [(1, 2, 8, 3)] * 2
    assert asked.options["opset_version"] == opset
    assert asked.options["input_names"] == [
        "inputs_embeds",
        "position_ids",
        *(f"past_key_values.0.{part}" for part in ("key", "value")),
        "attention_mask",
    ]
    assert asked.options["output_names"] == ["logits", "present.0.key", "present.0.value"]
    free = torch.export.Dim.DYNAMIC
    assert asked.options["dynamic_shapes"] == {
        "inputs_embeds": {1: free}, "position_ids": {1: free}, "past": [None, None], "attention_mask": {1: free},
    }  # fmt: skip


@pytest.mark.parametrize(("size", "outside"), [(1 << 24, False), ((1 << 24) + 1, True)])
def test_weights_of_more_than_64_mebibytes_lie_outside(asked: SimpleNamespace, tmp_path: Path, size: int, outside: bool):
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.empty(size, device="meta")))
    trace._trace(module, (), tmp_path / "m.onnx", 20, [], [])
    assert asked.saved is outside


def test_the_exporters_chatter_is_not_heard_and_errors_are(asked: SimpleNamespace, tmp_path: Path):
    before = logging.getLogger("onnxscript").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace._trace(nn.Identity(), (), tmp_path / "m.onnx", 20, [], [])
    assert asked.chatter == ["torch.onnx fails", "onnxscript fails", "onnx_ir fails"]
    assert logging.getLogger("onnxscript").level == before
    logging.disable(logging.INFO)
    with pytest.raises(ZeroDivisionError), trace._quiet():
        1 / 0  # noqa: B018
    assert logging.root.manager.disable == logging.INFO
    logging.disable(logging.NOTSET)
