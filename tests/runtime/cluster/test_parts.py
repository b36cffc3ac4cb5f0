"""The Parquet parts of a batch job: which rows stand, what a part holds, and who may write."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as parquet
import pytest
from refusal import naming

from runtime.cluster.parts import Parts
from runtime.core.errors import OutputError, UserError


def parts_of(out: Path, identity: str = "ours") -> Parts:
    """For a bundle whose clips have two tokens of three values."""
    manifest = SimpleNamespace(tokens_per_clip=2, hidden_size=3, compression=SimpleNamespace(spec="nsp"))
    return Parts(out, SimpleNamespace(manifest=manifest, sha256=lambda graph: f"{identity} {graph}"))


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    parts = parts_of(tmp_path / "new" / "out")
    with parts.locked():
        yield parts


@pytest.fixture
def row(tmp_path: Path):
    """A row of a file that is there, and as it was."""

    def row(name: str, error: str | None = None, **changes) -> dict:
        path = tmp_path / name
        path.write_bytes(b"abc")
        os.utime(path, ns=(5, 7_000_000_001))
        tokens = None if error else np.arange(6, dtype=np.float16).tobytes()
        return {
            "path": str(path),
            "size": 3,
            "mtime_ns": 7_000_000_001,
            "sha256": f"of {name}",
            "tokens": tokens,
            "error": error,
        } | changes

    return row


def names(parts: Parts) -> list[str]:
    return sorted(path.name for path in parts.out.iterdir() if path.name != ".lock")


def test_a_part_holds_rows_as_they_were_given_and_tokens_where_there_is_no_error(parts, row):
    part = parts.write([row("a"), row("b", error="torn"), row("c", tokens=np.full(6, 0.5, np.float16).tobytes())])
    assert part == parts.out / "part-000000.parquet"
    table = parquet.read_table(part)
    assert table.column_names == ["path", "sha256", "bundle", "spec", "tokens", "error", "size", "mtime_ns"]
    assert {column.compression for column in map(parquet.ParquetFile(part).metadata.row_group(0).column, range(8))} == {"ZSTD"}
    a, b, c = table.drop_columns(["tokens"]).to_pylist()
    facts = {"bundle": "ours vision", "spec": "nsp", "size": 3, "mtime_ns": 7_000_000_001}
    assert a == facts | {"path": row("a")["path"], "sha256": "of a", "error": None}
    assert (b["error"], c["sha256"]) == ("torn", "of c")
    tokens = table["tokens"].combine_chunks()
    assert (tokens.type.shape, str(tokens.type.value_type)) == ([2, 3], "halffloat")
    assert [token.is_valid for token in tokens] == [True, False, True]
    stored = np.asarray(tokens.storage.values).reshape(3, 2, 3)
    np.testing.assert_array_equal(stored[[0, 2]], [np.arange(6).reshape(2, 3), np.full((2, 3), 0.5)])


def test_parts_are_numbered_on_from_the_last_and_files_of_other_names_are_none(parts, row):
    for name in ("part-1.parquet", "part-0000009.parquet", "part-00000x.parquet", "other.parquet"):
        (parts.out / name).write_text("no part")
    assert parts.write([row("a")]).name == "part-000000.parquet"
    assert parts.write([row("b")]).name == "part-000001.parquet"
    os.rename(parts.out / "part-000001.parquet", parts.out / "part-000041.parquet")
    assert parts.write([row("c")]).name == "part-000042.parquet"
    assert {Path(path).name for path in parts.done()} == {"a", "b", "c"}


def test_rows_of_changed_files_and_errors_to_retry_are_taken_out(parts, row, tmp_path):
    for group in ("abc", "de", "f"):
        parts.write([row(name, error="torn" if name in "be" else None) for name in group])
    before = (parts.out / "part-000002.parquet").stat().st_mtime_ns
    everything = {str(tmp_path / name) for name in "abcdef"}
    assert parts.done() == everything
    os.utime(tmp_path / "a", ns=(5, 7_000_000_002))
    (tmp_path / "c").unlink()  # what is gone was worked on when it was there
    (tmp_path / "d").write_bytes(b"abcd")
    os.utime(tmp_path / "d", ns=(5, 7_000_000_001))
    assert parts.done() == everything - {str(tmp_path / "a"), str(tmp_path / "d")}
    assert parquet.read_table(parts.out / "part-000000.parquet")["path"].to_pylist() == [str(tmp_path / "b"), str(tmp_path / "c")]
    assert parts.done(retry_errors=True) == {str(tmp_path / "c"), str(tmp_path / "f")}
    assert names(parts) == ["part-000000.parquet", "part-000002.parquet"]  # nothing of the second stood
    assert (parts.out / "part-000002.parquet").stat().st_mtime_ns == before


def test_another_bundles_rows_are_none_of_this_jobs_business(parts, row, tmp_path):
    parts.write([row("a"), row("b", error="torn")])
    os.utime(tmp_path / "a", ns=(5, 6))
    other = parts_of(parts.out, "theirs")
    assert other.done(retry_errors=True) == set()
    assert parquet.read_table(parts.out / "part-000000.parquet").num_rows == 2


@pytest.mark.parametrize("column", ["path", "bundle"])
def test_a_row_without_a_path_or_a_bundle_is_no_row(parts, row, column):
    import pyarrow

    table = parquet.read_table(parts.write([row("a"), row("b")]))
    index = table.column_names.index(column)
    values = pyarrow.array([table[column][0].as_py(), None], pyarrow.string())
    part = parts.out / "part-000000.parquet"
    parquet.write_table(table.set_column(index, column, values), part)
    with pytest.raises(OutputError, match=naming(part, "path", "bundle")):
        parts.done()


def test_one_job_at_a_time_writes_and_sweeps_what_a_killed_one_left(tmp_path):
    out = tmp_path / "out"
    one, two = parts_of(out), parts_of(out)
    with one.locked():
        with (
            pytest.raises(OutputError, match=rf"another job writes to {out}"),
            two.locked(),
        ):
            pass
        (out / ".part-000003.parquet.tmp-1-abc").touch()
        (out / ".mine.tmp-1").touch()
    with two.locked():
        assert names(two) == [".mine.tmp-1"]
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match=naming(tmp_path / "file", "directory")),
        parts_of(tmp_path / "file").locked(),
    ):
        pass


def test_below_a_file_there_can_be_no_output(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError), parts_of(tmp_path / "file" / "out").locked():
        pass


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=naming('"pyarrow"', "st-gridpool[batch]")):
        parts_of(tmp_path)
