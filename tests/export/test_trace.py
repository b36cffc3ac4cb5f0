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
from export.trace import Vision, trace_decoder, trace_vision


class Compress(nn.Module):
    """[T, H, W, C] -> the mean of each row of patches, then the first frame."""

    stages = (("rows", None), ("first", None))

    def outputs(self, patches: torch.Tensor):
        yield "rows", patches.mean(2, keepdim=True)
        yield "first", patches.mean(2, keepdim=True)[:1]


def half(newline: torch.Tensor) -> SimpleNamespace:
    """An encoder that takes 2x3 patches of a pixel each out of [T, 3, 2, 3], C = 3, and a projector to D = 4."""
    encoder = nn.Sequential(nn.Flatten(2), Transposed())
    return SimpleNamespace(encoder=encoder, projector=nn.Linear(3, 4), newline=newline, grid=(2, 3))


class Transposed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class Halved(nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.permute(0, 3, 1, 2) / 2.0


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape and torch.allclose(got, expected)


@pytest.mark.parametrize("place", ["after-projector", "before-projector"])
def test_the_stages_of_a_vision_graph_are_its_parts_in_order(place: str):
    newline = torch.full((1, 4), 7.0)
    parts, compress = half(newline), Compress()
    vision = Vision(parts, compress, place)
    pixels = torch.arange(2 * 3 * 2 * 3, dtype=torch.float32).reshape(2, 3, 2, 3)
    tokens, *stages = vision(pixels)
    named = dict(zip(vision.stage_names(), stages, strict=True))
    patches = torch.stack([pixels[:, :, row, column] for row in range(2) for column in range(3)], 1)
    assert torch.equal(named["vision/encoder"], patches)
    after = place == "after-projector"
    given = parts.projector(patches) if after else patches
    rows = torch.stack([given[:, :3].mean(1), given[:, 3:].mean(1)], 1)[:, :, None]
    same(named["compress/rows"], rows)
    same(named["compress/first"], rows[:1])
    last = rows[0, :, 0]
    same(named["vision/projector"], given if after else parts.projector(last))
    same(tokens, torch.cat([last if after else parts.projector(last), newline]))
    assert not vision.newline.requires_grad
    assert list(named) == (
        ["vision/encoder", "vision/projector", "compress/rows", "compress/first"]
        if after
        else ["vision/encoder", "compress/rows", "compress/first", "vision/projector"]
    )


def test_frames_become_pixels_of_the_weights_type_first():
    vision = Vision(half(torch.zeros(1, 4)), Compress(), "after-projector", Halved()).double()
    frames = torch.arange(2 * 2 * 3 * 3, dtype=torch.uint8).reshape(2, 2, 3, 3)
    outputs = vision(frames)
    assert vision.stage_names()[:2] == ["vision/input", "vision/encoder"] and len(outputs) == 1 + 5
    assert outputs[1].dtype == torch.float64
    assert torch.equal(outputs[1], frames.permute(0, 3, 1, 2).double() / 2)


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


@pytest.mark.parametrize(("takes", "name"), [(None, "pixel_values"), (Halved(), "frames")])
def test_a_vision_graph_has_its_stages_as_outputs(asked: SimpleNamespace, tmp_path: Path, takes: nn.Module | None, name: str):
    vision = Vision(half(torch.zeros(1, 4)), Compress(), "after-projector", takes)
    path, given = tmp_path / "a" / "b" / "vision.onnx", torch.zeros(2, 3, 2, 3)
    for _ in range(2):  # over what a trace before has left
        traced = trace_vision(vision.train(), given, path, 19)
    stages = [*(["vision/input"] if takes else []), "vision/encoder", "vision/projector", "compress/rows", "compress/first"]
    assert traced.stages == {stage: f"{stage}/output" for stage in stages} and traced.model.graph.name == "traced"
    assert asked.module is vision and not vision.training and asked.args == (given,) and not asked.grad
    assert asked.options == {
        "dynamo": True, "opset_version": 19, "input_names": [name], "dynamic_shapes": None, "verbose": False,
        "output_names": ["visual_tokens", *traced.stages.values()],
    }  # fmt: skip


class Decoder(nn.Module):
    hidden_size = 6

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.lm_head = nn.Linear(6, 9, dtype=dtype)

    def empty_cache(self):
        return (torch.zeros(1, 2, 8, 3), torch.zeros(1, 2, 8, 3))

    def tensor_names(self):
        return ["past.0.key", "past.0.value"], ["present.0.key", "present.0.value"]


@pytest.mark.parametrize(("attention", "opset"), [("portable", 20), ("standard", 24)])
def test_a_decoder_is_traced_with_any_length_and_any_past(asked: SimpleNamespace, tmp_path: Path, attention: str, opset: int):
    decoder = Decoder(torch.float16)
    traced = trace_decoder(decoder, tmp_path / "decoder.onnx", attention)
    assert traced.stages == {}
    embeddings, positions, past, mask = asked.args
    new, old = embeddings.shape[1], mask.shape[1] - embeddings.shape[1]
    assert embeddings.shape == (1, new, 6) and embeddings.dtype == torch.float16
    assert positions.tolist() == [list(range(old, old + new))]
    assert mask.tolist() == [[1] * (old + new)] and mask.dtype == torch.int64
    assert len({1, 6, old, new, old + new}) == 5, "equal sizes would become one"
    assert [tensor.shape for tensor in past] == [(1, 2, 8, 3)] * 2
    assert asked.options["opset_version"] == opset
    assert asked.options["input_names"] == ["inputs_embeds", "position_ids", "past.0.key", "past.0.value", "attention_mask"]
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
    logging.getLogger("onnx_ir").setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), trace._quiet():
        1 / 0  # noqa: B018
    assert logging.getLogger("onnx_ir").level == logging.INFO
    logging.getLogger("onnx_ir").setLevel(logging.NOTSET)
