"""The stages of the vision encoder: their order, their names, and what each is computed from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from export.stages import Vision


class Compress(nn.Module):
    """[T, H, W, C] -> the mean of each row of patches, then the first frame."""

    stages = (("rows", None), ("first", None))

    def outputs(self, patches: torch.Tensor):
        yield "rows", patches.mean(2, keepdim=True)
        yield "first", patches.mean(2, keepdim=True)[:1]


def model(newline: torch.Tensor) -> SimpleNamespace:
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
    parts, compress = model(newline), Compress()
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
    vision = Vision(model(torch.zeros(1, 4)), Compress(), "after-projector", Halved()).double()
    frames = torch.arange(2 * 2 * 3 * 3, dtype=torch.uint8).reshape(2, 2, 3, 3)
    outputs = vision(frames)
    assert vision.stage_names()[:2] == ["vision/input", "vision/encoder"] and len(outputs) == 1 + 5
    assert outputs[1].dtype == torch.float64
    assert torch.equal(outputs[1], frames.permute(0, 3, 1, 2).double() / 2)


@pytest.mark.parametrize(
    ("place", "takes", "names"),
    [
        ("after-projector", None, ["vision/encoder", "vision/projector", "compress/ptg", "compress/nsp"]),
        ("before-projector", None, ["vision/encoder", "compress/ptg", "compress/nsp", "vision/projector"]),
        ("after-projector", "frames", ["vision/input", "vision/encoder", "vision/projector", "compress/ptg", "compress/nsp"]),
        ("before-projector", "frames", ["vision/input", "vision/encoder", "compress/ptg", "compress/nsp", "vision/projector"]),
    ],
)
def test_stages_are_named_in_their_order(place, takes, names):
    compress = SimpleNamespace(stages=[("ptg", None), ("nsp", None)])
    source = SimpleNamespace(encoder=None, projector=None, newline=torch.zeros(1, 2), grid=(2, 2))
    vision = Vision(source, compress, place, None if takes is None else torch.nn.Identity())
    assert vision.stage_names() == names and vision.input_name == (takes or "pixel_values")
    assert vision.features == ("vision/projector" if place == "after-projector" else "vision/encoder")


@pytest.mark.parametrize(
    ("selects", "selected"),
    [([False, False], set()), ([False, True], {"compress/nsp"}), ([True, False], {"compress/ptg", "compress/nsp"})],
)
def test_from_a_select_stage_on_rows_are_a_choice(selects, selected):
    stages = [(name, SimpleNamespace(select=select)) for name, select in zip(("ptg", "nsp"), selects, strict=True)]
    source = SimpleNamespace(encoder=None, projector=None, newline=torch.zeros(1, 2), grid=(2, 2))
    assert Vision(source, SimpleNamespace(stages=stages), "after-projector").selected == selected
