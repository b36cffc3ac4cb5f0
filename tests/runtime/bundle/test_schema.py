"""The manifest's JSON schema: the shipped file is what the records give, and what it refuses is named in one line."""

from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import pytest

from runtime.bundle.manifest import Manifest, read, written
from runtime.bundle.schema import FILE, check, manifest_schema
from runtime.core.errors import BundleError

VALUES: dict[str, Any] = {
    "schema_version": 1,
    "family": "llava-ov",
    "checkpoint": {"id": "tiny", "sha256": "0"},
    "compression": {"preset": "uniform", "spec": "avgpool:window=2", "place": "after-projector"},
    "frames": 2,
    "grid": [2, 3],
    "tokens_per_clip": 4,
    "hidden_size": 16,
    "preprocessing": {"size": [8, 8], "resample": "bicubic", "rescale_factor": 0.5, "image_mean": 0.5, "image_std": [1, 1, 1]},
    "prompt": {"chat_template": "c", "video_token": "v", "video_token_id": 1, "eos_token_ids": []},
    "llm": {"layers": 1, "kv_heads": 2, "head_dim": 8, "attention": "portable"},
    "precision": "fp32",
    "opset": 20,
    "limits": {"max_context": 9},
    "stages": [{"name": "vision/encoder", "graph": "vision", "tensor": "x", "every": 1, "rounding": 0.0}],
    "report": [{"graph": "vision", "pass": "fold", "rewrites": 0, "note": ""}],
    "versions": {"torch": "2"},
    "files": {"vision.onnx": {"size": 1, "sha256": "0"}, "llm/decoder.onnx": {"size": 1, "sha256": "0"}},
}
ENTRY = {"size": 1, "sha256": "0"}
OF_VISION = {"llm": {}, "prompt": {}, "limits": {}, "files": {"vision.onnx": ENTRY}}
ABSENT = object()


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    values = copy.deepcopy(VALUES)
    at: Any = values
    for key in path[:-1]:
        at = at[key]
    if value is ABSENT:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return values


def test_the_shipped_file_is_made_of_the_records() -> None:
    assert json.loads(FILE.read_text()) == manifest_schema(), "python -m runtime.bundle.schema writes it anew"


@pytest.mark.parametrize("values", [VALUES, VALUES | OF_VISION], ids=["both", "vision"])
def test_records_hold_what_the_file_says_in_its_order(values: dict[str, Any]) -> None:
    check(values, "m.json")
    assert json.dumps({"schema_version": 1} | written(read(Manifest, values))) == json.dumps(values)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (["grid"], ABSENT, "m.json lacks grid;"),
        (["family"], None, "family is null"),
        (["grid"], {}, "grid is {}"),
        (["limits"], [], "limits is []"),
        (["frames"], 2**31, "frames is 2147483648"),
        (["frames"], 10**309, "frames is 1000"),
        (["frames"], True, "frames is true"),
        (["frames"], 2.0, "frames is 2.0"),
        (["tokens_per_clip"], 0, "tokens_per_clip is 0"),
        (["hidden_size"], -1, "hidden_size is -1"),
        (["opset"], 0, "opset is 0"),
        (["grid"], [2, 2, 2], "grid is [2, 2, 2]"),
        (["grid", 1], 0, "grid[1] is 0"),
        (["checkpoint", "sha256"], ABSENT, "checkpoint lacks sha256"),
        (["compression", "place"], ABSENT, "compression lacks place"),
        (["stages", 0, "tensor"], ABSENT, "stages[0] lacks tensor"),
        (["stages", 0, "every"], 0, "stages[0].every is 0"),
        (["stages", 0, "rounding"], -0.1, "stages[0].rounding is -0.1"),
        (["stages", 0, "rounding"], float("nan"), "stages[0].rounding is NaN"),
        pytest.param(["stages", 0, "rounding"], 10**400, "stages[0].rounding is 1000", id="10**400"),
        (["report", 0, "note"], None, "report[0].note is null"),
        (["report", 0], {}, "report[0] lacks graph, pass, rewrites, note"),
        (["versions", "torch"], 2, "versions.torch is 2"),
        (["files", "vision.onnx", "size"], 1.0, 'files["vision.onnx"].size is 1.0'),
        (["files", "vision.onnx", "sha256"], ABSENT, 'files["vision.onnx"] lacks sha256'),
        (["files"], {"other.onnx": ENTRY}, '[{"required": ["vision.onnx"]}, {"required": ["llm/decoder.onnx"]}]'),
        (["files", "vision.encoder.onnx"], ENTRY, 'expected dependencies {"vision.encoder.onnx"'),
        (["files", "llm/decoder.onnx"], ABSENT, "(files has no llm/decoder.onnx)"),
        (["precision"], "int4", 'precision is "int4", expected enum ["fp32", "fp16", "int8"]'),
        (["llm"], {}, "llm lacks layers, kv_heads, head_dim"),
        *((["llm", key], 0, f"llm.{key} is 0") for key in ("layers", "kv_heads", "head_dim")),
        (["llm", "precision"], "int3", 'llm.precision is "int3"'),
        (["limits"], {}, "limits lacks max_context"),
        (["limits", "max_context"], 0, "limits.max_context is 0"),
        (["prompt", "chat_template"], None, "prompt.chat_template is null"),
        (["prompt", "video_token_id"], True, "prompt.video_token_id is true"),
        (["prompt", "eos_token_ids"], 2, "prompt.eos_token_ids is 2"),
        (["prompt", "eos_token_ids"], [2, 3.0], "prompt.eos_token_ids[1] is 3.0"),
        *((["prompt", "around_question"], value, "prompt.around_question is") for value in ("ab", ["a"], None)),
        (["prompt", "around_question"], ["a", 1], "prompt.around_question[1] is 1"),
        *((["prompt", "repetition_penalty"], value, "prompt.repetition_penalty is") for value in (-1, 0, 9e-4, 1001, "1", True)),
        (["preprocessing"], {}, "preprocessing lacks size, resample, rescale_factor, image_mean, image_std"),
        (["preprocessing", "size"], [8, 0], "preprocessing.size[1] is 0"),
        (["preprocessing", "size"], [8, 2**15 + 1], "preprocessing.size[1] is 32769"),
        *((["preprocessing", "resample"], value, "preprocessing.resample is") for value in ("cubic", 6, 3.0, True, None)),
        *((["preprocessing", "image_mean"], value, "preprocessing.image_mean is") for value in ([], [0, 0], "0", None)),
        *((["preprocessing", "image_std"], value, "preprocessing.image_std is") for value in (0, [1, 1, 0], 1e-60)),
        (["preprocessing", "rescale_factor"], 1e38, "preprocessing.rescale_factor is 1e+38"),
        (["preprocessing", "frames"], [8], "preprocessing.frames is [8]"),
        (["files", "a\n\x1b" * 99], 3, r'files["a\n\u001b'),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_in_one_short_line(path: list[Any], value: Any, named: str) -> None:
    with pytest.raises(BundleError) as refused:
        check(changed(path, value), "m.json")
    line = str(refused.value)
    assert line.startswith("m.json") and named in line and line.endswith("; export the bundle again")
    assert line.isprintable() and len(line) < 300


@pytest.mark.parametrize(
    "values",
    [
        {"frames": 1, "grid": [1, 2**31 - 1]},
        {"stages": [], "report": [], "versions": {}, "colour": "of a later revision"},
        {"stages": [{"name": "n", "graph": "g", "tensor": "t"}]},
        {"stages": [{"name": "n", "graph": "g", "tensor": "t", "rounding": 1.7976931348623157e308}]},
        *({"precision": precision} for precision in ("fp32", "fp16", "int8")),
        *({"llm": {"layers": 1, "kv_heads": 1, "head_dim": 1, "precision": precision}} for precision in ("fp16", "int8", "int4")),
        {"files": {"llm/decoder.onnx": ENTRY}},
        OF_VISION | {"files": {"vision.onnx": ENTRY, "vision.encoder.onnx": ENTRY, "vision.compressor.onnx": ENTRY}},
        {"prompt": VALUES["prompt"] | {"around_question": ["a", ""], "repetition_penalty": 1e-3}},
        {"prompt": VALUES["prompt"] | {"repetition_penalty": 1000}},
    ],
    ids=str,
)  # fmt: skip
def test_every_kind_of_bundle_passes(values: dict[str, Any]) -> None:
    check(VALUES | values, "m.json")


@pytest.mark.parametrize("name", ["clip_fp32", "split_int8_int4"])
def test_manifests_of_2026_11_26_are_read_without_loss(name: str) -> None:
    """Written by `python -m export` at feb7a3d, before the manifest had records and a schema."""
    values = json.loads((pathlib.Path(__file__).parent / "old" / f"{name}.json").read_text())
    check(values, name)
    assert json.dumps({"schema_version": 1} | written(read(Manifest, values))) == json.dumps(values)


def test_keys_that_older_exports_lack_have_defaults() -> None:
    old = read(Manifest, VALUES | {"stages": [{"name": "n", "graph": "g", "tensor": "t"}]})
    assert (old.stages[0].every, old.stages[0].rounding) == (1, 0.0)
    assert old.llm is not None and (old.llm.precision, old.llm.block) == (None, None)
    assert old.prompt is not None and (old.prompt.around_question, old.prompt.repetition_penalty) == (None, None)
    assert old.preprocessing.frames is None
