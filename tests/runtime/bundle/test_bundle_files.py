"""Files of a bundle that are not what they should be, though its manifest lists them as they are: one line that names the file."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusal import refused

from runtime.__main__ import main
from runtime.bundle import Bundle, write_manifest

CUT_HEADER = b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',"  # Python's tokenizer finds no end to it


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle_path, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))


def replace(bundle: Path, name: str, content: bytes) -> None:
    manifest = Bundle.open(bundle).manifest
    (bundle / name).write_bytes(content)
    write_manifest(bundle, manifest)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no array", "is not a .npy file"),
        (CUT_HEADER, "is not a .npy file"),
        (npy(np.zeros(4, np.float32))[:-4], "is not a .npy file"),
        (npy(np.array([{}], object)), "is not a .npy file"),
        (npy(np.zeros(4, np.float32)), "holds float32 [4]; expected float32 or float16 or int8 with 2 axes"),
        (npy(np.zeros((66, 128), np.int64)), "holds int64 [66, 128]; expected"),
        (npy(np.zeros((66, 64), np.float32)), "has rows of 64 values"),
        (npy(np.zeros((3, 128), np.float32)), "has 3 rows and none for token "),
    ],
)
def test_embeddings(copy: Path, clip: Path, capsys: pytest.CaptureFixture, content: bytes, message: str):
    replace(copy, "llm/embed_tokens.npy", content)
    line = refused(capsys, main, "run", copy, clip, "which shape appears last ?")
    assert message in line and "llm/embed_tokens.npy" in line


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llm.json", lambda values: values | {"greedy": ["one"]}, "does not hold lists of ids and margins"),
        ("llm.json", lambda values: values | {"before": [[1]]}, "does not hold lists of ids and margins"),
        ("llm.json", lambda values: values | {"margins": values["margins"][1:]}, "has 16 greedy ids and 15 margins"),
        ("llm.json", lambda values: values | {"after": [10**30]}, "does not hold lists of ids and margins"),
        ("torch.json", lambda values: json.loads(json.dumps(values).replace("visual_tokens", "other")), "has no visual_tokens"),
        ("llm.json", lambda values: [], "does not hold lists of ids and margins"),
        ("torch.json", lambda values: {"lst": "<video>"}, "does not hold Polygraphy's results"),
        ("inputs.json", lambda values: [{"pixel_values": {"array": "AAAA"}}], "is not a list of one feed"),
    ],
)
def test_references(copy: Path, capsys: pytest.CaptureFixture, name: str, change: Callable[[Any], Any], message: str):
    values = json.loads((copy / "reference" / name).read_text())
    replace(copy, f"reference/{name}", json.dumps(change(values)).encode())
    line = refused(capsys, main, "parity", copy, "--backend", "onnx")
    assert message in line and f"reference/{name}" in line


@pytest.mark.parametrize(
    "content",
    ["{{ 1 // 0 }}", "{{ messages + 1 }}", "{% for x in range(10**9) %}{% endfor %}", "{{ messages[0].content.no.no }}", "\udcff"],
)
def test_a_chat_template_that_fails_when_it_runs(copy: Path, clip: Path, capsys: pytest.CaptureFixture, content: str):
    replace(copy, "llm/chat_template.jinja", content.encode(errors="surrogateescape"))
    assert "the chat template does not work (" in refused(capsys, main, "run", copy, clip, "which shape appears last ?")


@pytest.mark.parametrize(
    "record", [[], {"schema_version": 1, "graphs": {"vision": []}}, {"schema_version": 1, "graphs": {"vision": {"size": "1"}}}]
)
def test_an_engine_record_that_is_not_one_counts_as_no_engine(copy: Path, record: Any):
    from runtime.engine.trt_records import read_record

    (copy / "build.json").write_text(json.dumps(record))
    assert read_record(copy) is None


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"no model at all"])
def test_a_graph_that_is_no_model(copy: Path, capsys: pytest.CaptureFixture, content: bytes):
    replace(copy, "vision.onnx", content)
    for command in (["inspect"], ["inspect", "--predict", "orin"], ["parity", "--backend", "onnx"]):
        line = refused(capsys, main, command[0], copy, *command[1:])
        assert "vision.onnx" in line


def test_a_batch_part_with_text_that_is_none(copy: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    import pyarrow
    import pyarrow.parquet

    words = ["batch", copy, clip, "--out", tmp_path / "out", "--runner", "local", "--workers", "1"]
    assert main([str(word) for word in words]) == 0
    part = tmp_path / "out" / "part-000000.parquet"
    table = pyarrow.parquet.read_table(part)
    offsets = np.array([0, 1], np.int32).tobytes()
    for path in (
        pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"\xff")]),
        pyarrow.array([None], pyarrow.string()),
        pyarrow.array([3]),
        pyarrow.array(["a\0b"]),
    ):
        pyarrow.parquet.write_table(table.set_column(0, "path", path), part)
        assert f"{part} is not a part of a batch job (" in refused(capsys, main, *words)


def test_a_batch_part_whose_tokens_are_damaged_where_another_row_must_go(
    copy: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    import pyarrow.parquet

    clips = [Path(shutil.copy(clip, tmp_path / name)) for name in ("one.mp4", "two.mp4")]
    words = ["batch", copy, *clips, "--out", tmp_path / "out", "--runner", "local", "--workers", "1"]
    assert main([str(word) for word in words]) == 0
    part = tmp_path / "out" / "part-000000.parquet"
    column = pyarrow.parquet.ParquetFile(part).metadata.row_group(0).column(4)
    assert column.path_in_schema.startswith("tokens")
    content = bytearray(part.read_bytes())
    at = column.dictionary_page_offset or column.data_page_offset
    content[at : at + 16] = b"\xff" * 16
    part.write_bytes(content)
    os.utime(clips[0], ns=(0, 0))
    capsys.readouterr()
    assert f"{part} is not a part of a batch job (" in refused(capsys, main, *words)
