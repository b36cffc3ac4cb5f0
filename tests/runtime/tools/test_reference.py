"""What a bundle's reference files may hold; what they must not is named with its file."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from refusal import naming

from runtime.core.errors import BundleError
from runtime.tools import reference


@pytest.fixture
def stored(tmp_path: Path) -> SimpleNamespace:
    """A bundle as far as these files go."""
    (tmp_path / "reference").mkdir()
    return SimpleNamespace(path=tmp_path, file=lambda name: tmp_path / name)


def with_llm(stored: SimpleNamespace, **changes: object) -> SimpleNamespace:
    values = {"before": [1], "after": [2, 3], "greedy": [4, 5], "margins": [0.5, 2]} | changes
    (stored.path / "reference" / "llm.json").write_text(json.dumps(values))
    np.save(stored.path / "reference" / "llm_visual_tokens.npy", np.ones((3, 4), np.float32))
    np.save(stored.path / "reference" / "llm_logits.npy", np.arange(6, dtype=np.float32))
    return stored


def test_what_transformers_answered_is_read_back(stored):
    got = reference.llm(with_llm(stored))
    assert (got.ids.before, got.ids.after, got.greedy, got.margins, got.rounding) == ([1], [2, 3], [4, 5], [0.5, 2.0], 0.0)
    assert got.visual_tokens.shape == (3, 4) and got.logits.tolist() == [0, 1, 2, 3, 4, 5]
    assert reference.llm(with_llm(stored, rounding=1e-5)).rounding == 1e-5


@pytest.mark.parametrize("id_", [0, 2_147_483_647])
def test_an_id_is_a_number_that_int32_holds(stored, id_):
    assert reference.llm(with_llm(stored, before=[id_])).ids.before == [id_]


@pytest.mark.parametrize("id_", [-1, 2_147_483_648, 4_294_967_295, True, 1.0, "1", None])
def test_what_is_no_id_is_refused(stored, id_):
    with pytest.raises(BundleError, match=naming("llm.json", "token id")):
        reference.llm(with_llm(stored, after=[2, id_]))


def test_outputs_that_are_no_numbers_are_refused(stored):
    comparator = pytest.importorskip("polygraphy.comparator")

    def write(array: np.ndarray) -> None:
        results = comparator.IterationResult(outputs={"visual_tokens": array}, runtime=0.0, runner_name="torch")
        comparator.RunResults([("torch", [results])]).save(str(stored.path / "reference" / "torch.json"))

    write(np.eye(2, dtype=np.float16))
    assert list(reference.outputs(stored, "torch")) == ["visual_tokens"]
    with pytest.raises(BundleError, match=naming("torch.json", "compress/nsp")):
        reference.outputs(stored, "torch", "compress/nsp")
    np.testing.assert_array_equal(reference.outputs(stored, "torch", "visual_tokens")["visual_tokens"], [[1, 0], [0, 1]])
    write(np.array(["one", "two"]))
    with pytest.raises(BundleError, match=naming("torch.json", "visual_tokens", "<U3")):
        reference.outputs(stored, "torch")


@pytest.mark.parametrize("kind", ["int8", "uint8", "float64", "bool"])
def test_outputs_may_be_any_numbers(stored, kind):
    comparator = pytest.importorskip("polygraphy.comparator")
    results = comparator.IterationResult(outputs={"a": np.array([0, 1], kind)}, runtime=0.0, runner_name="torch")
    comparator.RunResults([("torch", [results])]).save(str(stored.path / "reference" / "stages.json"))
    assert reference.outputs(stored, "stages")["a"].tolist() == [0, 1]


def test_as_many_margins_as_ids_are_needed(stored):
    with pytest.raises(BundleError, match=naming("llm.json", "2 greedy ids", "1 margins")):
        reference.llm(with_llm(stored, margins=[0.5]))


def clip_of(stored: SimpleNamespace, *feeds: dict[str, np.ndarray], pickled: bool = False) -> np.ndarray:
    """The clip of a file as Polygraphy writes it."""

    def text(array: np.ndarray) -> str:
        np.save(content := io.BytesIO(), array, allow_pickle=pickled)
        return base64.b64encode(content.getvalue()).decode()

    listed = [{name: {"array": text(array), "polygraphy_class": "ndarray"} for name, array in feed.items()} for feed in feeds]
    (stored.path / "reference" / "inputs.json").write_text(json.dumps(listed))
    return reference.clip(stored)


def test_the_clip_is_the_one_input_of_the_one_feed(stored):
    clip = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    read = clip_of(stored, {"frames": clip})
    np.testing.assert_array_equal(read, clip)
    assert read.dtype == np.uint8
    for feeds in ([], [{"a": clip}, {"a": clip}], [{"a": clip, "b": clip}], [{}]):
        with pytest.raises(BundleError, match=naming("inputs.json", "one feed", "one input")):
            clip_of(stored, *feeds)


def test_a_clip_that_would_run_code_is_not_unpickled(stored):
    with pytest.raises(BundleError, match=naming("inputs.json")):
        clip_of(stored, {"frames": np.array([{"a": 1}], object)}, pickled=True)


def test_polygraphy_is_silent_only_meanwhile():
    logger = pytest.importorskip("polygraphy.logger").G_LOGGER
    before = logger.module_severity.get()
    with reference.quiet_polygraphy():
        assert logger.module_severity.get() > logger.CRITICAL
    assert logger.module_severity.get() == before
