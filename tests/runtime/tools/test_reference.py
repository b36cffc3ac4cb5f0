"""What a bundle's reference files may hold; what they must not is named with its file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.errors import BundleError
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
    with pytest.raises(BundleError, match=r"llm\.json does not hold lists of ids .* is no token id\); export the bundle again"):
        reference.llm(with_llm(stored, after=[2, id_]))


def test_outputs_that_are_no_numbers_are_refused(stored):
    comparator = pytest.importorskip("polygraphy.comparator")

    def write(array: np.ndarray) -> None:
        results = comparator.IterationResult(outputs={"visual_tokens": array}, runtime=0.0, runner_name="torch")
        comparator.RunResults([("torch", [results])]).save(str(stored.path / "reference" / "torch.json"))

    write(np.eye(2, dtype=np.float16))
    np.testing.assert_array_equal(reference.outputs(stored, "torch", "visual_tokens")["visual_tokens"], [[1, 0], [0, 1]])
    write(np.array(["one", "two"]))
    with pytest.raises(BundleError, match=r"torch\.json: visual_tokens holds <U3, expected numbers; export the bundle again"):
        reference.outputs(stored, "torch")
