"""Which tensors of a vision graph are compared with what, in which order and how strictly, on an engine that answers as told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusal import naming

from export import verify
from export.reference import VisionReference
from export.stages import Vision
from runtime.core.errors import ExportError

T, GRID, C, D = 2, (2, 3), 4, 5
PIXELS = np.zeros((T, 3, 2, 2))


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


NEWLINE = normal(1, D, seed=2)


class Compress:
    """A grid stage that doubles, then a select stage that keeps every other patch of every frame."""

    double, pick = SimpleNamespace(select=False), SimpleNamespace(select=True)
    stages = (("double", double), ("pick", pick))

    def outputs(self, patches: torch.Tensor):
        yield "double", patches * 2
        yield "pick", (patches * 2).flatten(0, 2)[::2]


class Engine:
    """Answers with float32 numbers of `answers`; given: what it was fed."""

    def __init__(self, answers: dict[str, np.ndarray], dtype: type = np.float32):
        self.inputs = (SimpleNamespace(name="pixel_values", dtype=dtype),)
        self.answers, self.given = answers, None

    def run(self, feed):
        self.given = feed
        return self.answers


@pytest.fixture(params=["after-projector", "before-projector"])
def place(request) -> str:
    return request.param


@pytest.fixture
def vision(place: str) -> Vision:
    source = SimpleNamespace(encoder=None, projector=torch.nn.Linear(C, D), newline=torch.from_numpy(NEWLINE), grid=GRID)
    return Vision(source, Compress(), place)


@pytest.fixture
def right(vision: Vision) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(what the graph says, what torch says): the same, worked out with NumPy; a newline closes the tokens."""
    weight, bias = (parameter.detach().numpy() for parameter in vision.projector.parameters())
    encoded = normal(T, 6, C, seed=1)
    before = vision.place == "before-projector"
    patches = encoded if before else encoded @ weight.T + bias
    double = 2 * patches.reshape(T, *GRID, -1)
    picked = double.reshape(12, -1)[::2]
    projected = picked @ weight.T + bias if before else patches
    got = {"vision/encoder": encoded, "vision/projector": projected, "compress/double": double, "compress/pick": picked}
    tokens = np.concatenate([projected if before else picked, NEWLINE])
    answers = {f"{name}/output": value.copy() for name, value in got.items()} | {"visual_tokens": tokens.copy()}
    return answers, got | {"visual_tokens": tokens}


def verified(engine: Engine, vision, reference, precision="fp32", rounding=0.0):
    return verify.verify_vision(engine, vision, VisionReference(PIXELS, reference, rounding), precision)


def order(place: str) -> list[str]:
    stages = ["compress/double", "compress/pick"]
    middle = [*stages, "vision/projector"] if place == "before-projector" else ["vision/projector", *stages]
    return ["vision/encoder", *middle, "visual_tokens"]


def test_every_stage_is_judged_in_the_order_of_the_graph(vision, right, place):
    answers, reference = right
    engine = Engine(answers, np.float16)
    results, tokens = verified(engine, vision, reference)
    assert [result.stage for result in results] == order(place)
    assert all(result.ok and result.error < 1e-6 for result in results)
    assert tokens is answers["visual_tokens"] and engine.given["pixel_values"].dtype == np.float16


def test_what_to_do_is_said_with_the_stage_that_differs(vision, right):
    answers, reference = right
    answers["vision/encoder/output"] = answers["vision/encoder/output"] + 9
    with pytest.raises(ExportError, match=naming("vision/encoder", "pass --attention portable; nothing was written")):
        verify.verify_vision(
            Engine(answers), vision, VisionReference(PIXELS, reference, 0.0), "fp16", "pass --attention portable; "
        )


@pytest.mark.parametrize("stage", ["vision/encoder", "vision/projector", "compress/double", "visual_tokens"])
def test_the_first_stage_that_differs_is_named(vision, right, place, stage):
    answers, reference = right
    name = stage if stage == "visual_tokens" else f"{stage}/output"
    answers[name].flat[0] += 0.01 * np.abs(answers[name]).max()
    later = order(place)[-1]
    answers[later] = answers[later] * np.nan
    with pytest.raises(ExportError, match=naming(stage, "torch", "ONNX Runtime", "1e-04", "fp32")):
        verified(Engine(answers), vision, reference)


OFF = np.float32(1 + 3e-4)


@pytest.mark.parametrize("stage", ["vision/encoder", "vision/projector"])
def test_four_times_the_rounding_of_the_checkpoint_is_allowed_to_encoder_and_projector(vision, right, place, stage):
    answers, reference = right
    if (place, stage) == ("before-projector", "vision/projector"):  # of the graph's own tokens, which become those of the clip
        answers["vision/projector/output"] *= OFF
        answers["visual_tokens"][:-1] *= OFF
    else:
        reference = reference | {stage: reference[stage] * OFF}
    results, _ = verified(Engine(answers), vision, reference, rounding=1e-4)
    assert {result.stage: result.error for result in results}[stage] == pytest.approx(3e-4, rel=0.01)
    with pytest.raises(ExportError, match=f"^{stage} differs .* allowed 1e-04"):
        verified(Engine(answers), vision, reference)


@pytest.mark.parametrize("stage", ["compress/double", "visual_tokens"])
def test_no_rounding_is_allowed_to_stages_that_are_judged_by_their_rule(vision, right, stage):
    answers, reference = right
    answers[stage if stage == "visual_tokens" else f"{stage}/output"] *= OFF
    with pytest.raises(ExportError, match=f"^{stage} differs"):
        verified(Engine(answers), vision, reference, rounding=1e-4)


def test_from_a_select_stage_on_rows_may_be_chosen_in_another_order(vision, right, place):
    answers, reference = right
    swapped = [1, 0, 2, 3, 4, 5]
    answers["compress/pick/output"] = answers["compress/pick/output"][swapped]
    if place == "before-projector":
        answers["vision/projector/output"] = answers["vision/projector/output"][swapped]
    answers["visual_tokens"] = answers["visual_tokens"][[*swapped, 6]]
    assert all(result.ok for result in verified(Engine(answers), vision, reference)[0])
    answers["compress/double/output"] = answers["compress/double/output"][::-1]
    with pytest.raises(ExportError, match=r"^compress/double differs"):
        verified(Engine(answers), vision, reference)


def test_the_precision_is_the_graphs(vision, right):
    answers, reference = right
    reference = reference | {"vision/encoder": reference["vision/encoder"] * np.float32(1.02)}
    assert verified(Engine(answers), vision, reference, "fp16")[0][0].error == pytest.approx(0.02, rel=0.05)
    with pytest.raises(ExportError, match=r"^vision/encoder differs"):
        verified(Engine(answers), vision, reference, "fp32")


def test_pixels_that_the_graph_makes_itself_are_judged_first(vision, right, place):
    answers, reference = right
    vision.input = torch.nn.Identity()
    pixels = normal(T, 3, 2, 2, seed=4)
    answers["vision/input/output"], reference = pixels, reference | {"vision/input": pixels}
    assert [result.stage for result in verified(Engine(answers), vision, reference)[0]] == ["vision/input", *order(place)]
    with pytest.raises(ExportError, match=r"^vision/input differs"):
        verified(Engine(answers), vision, reference | {"vision/input": -pixels})


@pytest.mark.parametrize(("is_split", "name"), [(False, "visual_tokens (loop)"), (True, "visual_tokens (split)")])
def test_frame_by_frame_the_tokens_are_those_of_the_graph_that_takes_a_clip(vision, is_split, name):
    tokens = normal(6, D, seed=5)

    def judged(got, rounding=0.0):
        engine = SimpleNamespace(
            pixel_values=SimpleNamespace(dtype=np.float16),
            encodes_frames=is_split,
            encode_clip=lambda pixels: pixels.dtype,
            compress=lambda features: {"visual_tokens": got} if features == np.float16 else {},
        )
        return verify.verify_frame_by_frame(engine, vision, tokens, VisionReference(PIXELS, {}, rounding), "fp32")

    row = judged(tokens.copy())
    assert (row.stage, row.error, row.ok) == (name, 0.0, True)
    assert judged(tokens[[1, 0, 2, 3, 4, 5]]).ok, "a select stage may choose in another order"
    assert judged(tokens * OFF, 1e-4).ok
    for wrong in (tokens * OFF, -tokens):
        with pytest.raises(ExportError, match=f"^{name[:13]} .{name[15:-1]}. differs"):
            judged(wrong)
    vision.compress.stages = vision.compress.stages[:1]
    with pytest.raises(ExportError):
        judged(tokens[[1, 0, 2, 3, 4, 5]])
