"""Rows of the table of word embeddings: their values and dtypes, and the errors for a table that is not the bundle's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime.core.errors import BundleError
from runtime.prompt import embeddings
from runtime.prompt.embeddings import Embeddings

ROWS = np.array([[1, -2, 3], [4, 5, -6], [7, 0, 127], [-128, 1, 2]])


def table(directory: Path, rows: np.ndarray, scales: np.ndarray | None = None, hidden: int = 3) -> Embeddings:
    (directory / "llm").mkdir()
    np.save(directory / "llm" / "embed_tokens.npy", rows)
    if scales is not None:
        np.save(directory / "llm" / "embed_scales.npy", scales)
    return Embeddings(SimpleNamespace(file=lambda name: directory / name, manifest=SimpleNamespace(hidden_size=hidden)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_rows_are_those_of_the_file(tmp_path, dtype):
    rows = table(tmp_path, ROWS.astype(dtype))
    assert (len(rows), rows.shape, rows.dtype) == (4, (4, 3), np.dtype(dtype))
    for ids in ([0], [3], [2, 0, 2], [], range(4)):
        got = rows[ids]
        assert got.dtype == dtype and got.shape == (len(ids), 3)
        np.testing.assert_array_equal(got, ROWS[list(ids)])


def test_int8_rows_are_multiplied_by_their_scales(tmp_path):
    rows = table(tmp_path, ROWS.astype(np.int8), np.float32([1, 0.5, 2, 0.25]))
    assert (len(rows), rows.dtype) == (4, np.float32)
    got = rows[[3, 1]]
    assert got.dtype == np.float32 and got.tolist() == [[-32, 0.25, 0.5], [2, 2.5, -3]]
    assert rows[[]].shape == (0, 3)


def test_a_table_is_read_from_the_files_of_its_dtype():
    bundle = SimpleNamespace(file=lambda name: read.append(name) or Path(name), manifest=SimpleNamespace(hidden_size=3))
    for dtype, files in ((np.int8, ["llm/embed_tokens.npy", "llm/embed_scales.npy"]), (np.float16, ["llm/embed_tokens.npy"])):
        asked, read = [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embeddings, "read_array", lambda path, *more, dtype=dtype, asked=asked: asked.append((str(path), *more))
                          or (ROWS.astype(dtype) if "tokens" in str(path) else np.ones(4, np.float32)))  # fmt: skip
            Embeddings(bundle)
        assert read == files
        assert asked == [(files[0], 2, ("float32", "float16", "int8")), ("llm/embed_scales.npy", 1, ("float32",))][: len(files)]


@pytest.mark.parametrize(("ids", "named"), [([4], 4), ([0, 9, 4], 9), ([-1], -1), ([3, -1], -1), ([9, -2], -2)])
def test_a_token_without_a_row_is_named(tmp_path, ids, named):
    with pytest.raises(BundleError, match=rf"embed_tokens\.npy .*\b4\b.* {named}\b"):
        table(tmp_path, ROWS.astype(np.float32))[ids]


@pytest.mark.parametrize(
    ("rows", "scales", "hidden", "message"),
    [
        (ROWS.astype(np.float32), None, 4, r"embed_tokens\.npy.* 3 .* 4"),
        (ROWS.astype(np.int8), np.ones(3, np.float32), 3, r"embed_scales\.npy .*3,.* 4 "),
        (ROWS.astype(np.int8), np.ones((4, 1), np.float32), 3, r"embed_scales\.npy"),
        (ROWS.astype(np.int8), np.ones(4), 3, r"embed_scales\.npy"),
        (ROWS.astype(np.int16), None, 3, r"embed_tokens\.npy"),
        (ROWS[0].astype(np.float32), None, 3, r"embed_tokens\.npy"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, rows, scales, hidden, message):
    with pytest.raises(BundleError, match=message):
        table(tmp_path, rows, scales, hidden)
