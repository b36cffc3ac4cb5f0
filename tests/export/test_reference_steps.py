"""What the reference computes of parts that are written down here: stages, prompts and rounding, without a model of torch's size."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from export import reference
from export.stages import Vision
from runtime.prompt import PromptIds
from runtime.tools.reference import LLMReference


class FakeEncoder:
    """[T, 3, h, w] -> [T, 4, 1], the sum of each frame and three more; notes how many frames came at once."""

    def __init__(self):
        self.seen: list[int] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(pixels))
        return pixels.sum((1, 2, 3))[:, None, None] + torch.arange(4.0)[None, :, None]


class Compress:
    """Sums of the two columns of a grid, then of the two rows."""

    stages = (("columns", None), ("rows", None))

    def outputs(self, tokens):
        assert tokens.shape[1:3] == (2, 2)
        columns = tokens.sum(2)
        yield "columns", columns
        yield "rows", columns.sum(1)


def stages(frames, place, source=None):
    encoder = FakeEncoder()
    newline = torch.tensor([[7.0, 8.0]])
    model = SimpleNamespace(
        encoder=None, reference_encoder=encoder, projector=lambda x: torch.cat([x, -x], -1), grid=(2, 2), newline=newline
    )
    vision = Vision(model, Compress(), place, source)
    pixels = np.arange(frames, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 1, 1), np.float32)
    return dict(reference.stages(vision, model, pixels)), encoder.seen, pixels


@pytest.mark.parametrize(("frames", "parts"), [(1, [1]), (4, [4]), (5, [4, 1]), (9, [4, 4, 1])])
def test_the_encoder_takes_four_frames_at_a_time(frames, parts):
    found, seen, _ = stages(frames, "after-projector")
    assert seen == parts
    expected = 3.0 * np.arange(frames)[:, None, None] + np.arange(4)[None, :, None]
    np.testing.assert_array_equal(found["vision/encoder"], expected)


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("after-projector", ["vision/encoder", "vision/projector", "compress/columns", "compress/rows", "visual_tokens"]),
        ("before-projector", ["vision/encoder", "compress/columns", "compress/rows", "vision/projector", "visual_tokens"]),
    ],
)
def test_stages_follow_each_other(place, names):
    found, _, _ = stages(2, place)
    assert list(found) == names
    # patches of the frames: 0 1 2 3 and 3 4 5 6, columns summed: 1 5 and 7 11, rows: 6 and 18
    one = np.array([[1, 5], [7, 11]], np.float32)[..., None]
    both = place == "after-projector"
    np.testing.assert_array_equal(found["compress/columns"], np.concatenate([one, -one], -1) if both else one)
    np.testing.assert_array_equal(found["visual_tokens"], [[6, -6], [18, -18], [7, 8]])
    projected = found["vision/projector"]
    if both:
        np.testing.assert_array_equal(projected[..., 0], [[0, 1, 2, 3], [3, 4, 5, 6]])
    else:
        np.testing.assert_array_equal(projected, [[6, -6], [18, -18]])


def test_of_a_graph_that_takes_frames_the_pixels_are_a_stage():
    found, _, pixels = stages(1, "after-projector", source="frames")
    assert next(iter(found)) == "vision/input" and np.shares_memory(found["vision/input"], pixels)


class Rounding(torch.nn.Module):
    """What it adds to its input in float32 and not in float64."""

    def __init__(self, error: float, seen: list[int] | None = None):
        super().__init__()
        self.error, self.seen = error, [] if seen is None else seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return x + self.error * (x.dtype == torch.float32)


@pytest.mark.parametrize(
    ("library", "exported", "projector", "expected"),
    [(0.5, 0, 0, 0.5), (0, 0.25, 0, 0.25), (0, 0, 0.125, 0.125), (0.5, 0.25, 0.25, 0.75), (0, 0, 0, 0)],
)
def test_rounding_is_the_worst_of_both_encoders_and_the_projector(library, exported, projector, expected):
    model = SimpleNamespace(
        reference_encoder=Rounding(library), encoder=Rounding(exported), projector=Rounding(projector), grid=(27, 27)
    )
    assert reference.vision_rounding(model, np.ones((3, 1), np.float32)) == expected


@pytest.mark.parametrize(("grid", "frames"), [((27, 27), 1), ((27, 26), 2), ((9, 9), 9), ((9, 10), 9), ((1, 1), 800)])
def test_rounding_is_measured_on_729_patches_or_a_few_more(grid, frames):
    seen: list[int] = []
    part = Rounding(0, seen)
    model = SimpleNamespace(reference_encoder=part, encoder=part, projector=part, grid=grid)
    reference.vision_rounding(model, np.ones((800, 1), np.float32))
    assert set(seen) == {min(frames, 729)}


VOCABULARY = 7


class FakeLLM(torch.nn.Module):
    """The logit of the next number after the last position's is highest: 4, or 6 where the position is of a clip; all numbers mod 7."""

    def __init__(self, rounded: float = 0.0):
        super().__init__()
        self.rounded = rounded
        self.seen: list[tuple] = []
        self.table = torch.nn.Embedding.from_pretrained(torch.arange(float(VOCABULARY))[:, None], freeze=True)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids=None, inputs_embeds=None, past_key_values=None, use_cache=None, logits_to_keep=0):
        given = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        self.seen.append((given.dtype, given.flatten().tolist(), past_key_values, use_cache, logits_to_keep))
        logits = torch.zeros(*given.shape[:2], VOCABULARY, dtype=given.dtype)
        for at, value in enumerate(given[0, :, 0].tolist()):
            logits[0, at, (int(value) + 1) % VOCABULARY] = 4
            logits[0, at, (int(value) + 3) % VOCABULARY] = 1
            logits[0, at, 0] += self.rounded * (given.dtype == torch.float32)
        kept = logits[:, -logits_to_keep:]
        return SimpleNamespace(logits=kept, past_key_values=len(self.seen))


def test_the_llms_answer_is_that_of_its_float32_and_its_logits_are_exact():
    model = FakeLLM(rounded=0.5)
    ids = PromptIds(([1, 2], [3]))
    tokens = np.array([[5.0], [6.0]], np.float32)
    found = reference.llm(model, ids, tokens)
    greedy = [4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5]  # sixteen that count on from the prompt's last
    assert found.greedy == greedy and found.ids is ids and found.visual_tokens is tokens
    assert found.logits.tolist() == [0, 0, 0, 0, 4, 0, 1] and found.logits.dtype == np.float32
    assert found.margins == [3.0] * 16
    assert found.rounding == 0.5 / 4
    prompt = [1, 2, 5, 6, 3]
    first, *others, last = model.seen
    assert first == (torch.float32, prompt, None, True, 1)
    assert others == [(torch.float32, [one], at, True, 0) for at, one in enumerate(greedy[:-1], 1)]
    assert last == (torch.float64, prompt + greedy[:-1], None, False, 16)


@pytest.mark.parametrize(("before", "after", "prompt"), [([], [3], [5, 3]), ([2], [3, 4], [2, 5, 3, 4])])
def test_a_prompt_may_begin_with_the_clip(before, after, prompt):
    model = FakeLLM()
    found = reference.llm(model, PromptIds((before, after)), np.array([[5.0]], np.float32))
    assert model.seen[0][1] == prompt and found.greedy[0] == after[-1] + 1 and found.rounding == 0


def test_an_id_of_float32_that_is_not_the_best_has_no_margin():
    class Wrong(FakeLLM):
        def forward(self, *arguments, **named):
            output = super().forward(*arguments, **named)
            if output.logits.dtype == torch.float64:
                output.logits[0, 2, 0] = 9
            return output

    model = Wrong()
    found = reference.llm(model, PromptIds(([1], [2])), np.zeros((1, 1), np.float32))
    assert found.margins == [3, 3, 0, *[3] * 13] and found.rounding == pytest.approx(8 / 9)  # a 1 that should be 9


@pytest.mark.parametrize("shape", [(5, 4), (3, 6)])
def test_the_clip_is_drifting_waves_under_noise(shape):
    clip = reference.pixel_values(2, shape)
    rng = np.random.default_rng(0)
    waves, noise = rng.uniform(2, 24, (3, 4)), rng.standard_normal((2, 3, *shape), np.float32)
    assert clip.shape == noise.shape
    for frame, channel, row, column in np.ndindex(clip.shape):
        across, down, drift, phase = waves[channel]
        y, x = row / (shape[0] - 1), column / (shape[1] - 1)  # both from 0 to 1
        wave = np.sin(across * x + down * y**2 + 0.11 * drift * frame + phase)
        expected = np.clip(0.7 * wave + 0.3 * noise[frame, channel, row, column], -1, 1)
        assert clip[frame, channel, row, column] == pytest.approx(expected, abs=1e-5)


def test_what_is_kept_of_the_vision_half_is_read_back(tmp_path):
    from runtime.tools.reference import outputs, quiet_polygraphy

    made = {"vision/encoder": np.arange(5, dtype=np.float32), "visual_tokens": np.arange(4, dtype=np.float32).reshape(2, 2)}
    expected = reference.VisionReference(np.arange(6, dtype=np.float32).reshape(1, 6), made, 0.0)
    assert reference.save_vision(tmp_path / "deep" / "reference", expected, "pixel_values") == {
        "vision/encoder": 1,
        "visual_tokens": 1,
    }
    reference.save_vision(tmp_path / "deep" / "reference", expected, "pixel_values")  # a directory that is there will do
    bundle = SimpleNamespace(file=lambda name: tmp_path / "deep" / name)
    with quiet_polygraphy():
        assert list(outputs(bundle, "torch")) == ["visual_tokens"]
        stages = outputs(bundle, "stages")
    assert {name: array.tolist() for name, array in stages.items()} == {
        "vision/encoder": [0, 1, 2, 3, 4],
        "visual_tokens": [0, 1, 2, 3],
    }


def test_what_is_kept_of_the_llm_is_read_back(tmp_path):
    expected = LLMReference(
        PromptIds(([1, 2], [3])), np.ones((2, 1), np.float32), np.arange(3, dtype=np.float32), [4, 5], [0.5, 0.25], 0.125
    )
    for _ in range(2):
        reference.save_llm(tmp_path / "deep" / "reference", expected)
    assert json.loads((tmp_path / "deep" / "reference" / "llm.json").read_text()) == {
        "before": [1, 2], "after": [3], "greedy": [4, 5], "margins": [0.5, 0.25], "rounding": 0.125,
    }  # fmt: skip
    for name, array in (("llm_logits", expected.logits), ("llm_visual_tokens", expected.visual_tokens)):
        written = io.BytesIO((tmp_path / "deep" / "reference" / f"{name}.npy").read_bytes())
        np.testing.assert_array_equal(np.load(written), array)
