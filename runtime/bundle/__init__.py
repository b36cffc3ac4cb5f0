"""The bundle: the one contract between export, the Python runtime and the C++ runtime.

    manifest.json                 everything below, sized and hashed, and what the runtime must know
    vision.onnx (+ .data)         pixel_values [T, 3, h, w] -> visual_tokens [N, D]; N is a constant
    vision.loop.onnx              the same over the same weights, frame by frame: what a CPU runs
    vision.encoder.onnx           instead of vision.loop.onnx in a bundle that was split: pixel_values [1, 3, h, w] ->
    vision.compressor.onnx        features [1, H, W, C], and features [T, H, W, C] -> visual_tokens [N, D]; the same weights
    llm/decoder.onnx (+ .data)    inputs_embeds [1, S, D], position_ids, KV, attention_mask -> logits [1, 1, V], KV
    llm/decoder.batch.onnx        the same over the same weights for B conversations at once: what a server decodes with
    llm/embed_tokens.npy          [V, D], memory-mapped; int8 with llm/embed_scales.npy [V] where the LLM is quantised
    llm/tokenizer.json, llm/chat_template.jinja
    quantization.json             where something is quantised: the precision and the error of every layer
    reference/                    a fixed input and torch's output for it, in Polygraphy's formats
    engines/                      engines built later; they carry their own build.json and are not in the manifest

Sizes are checked at every load, hashes at the first load of a path, after any change of a file's size or time, and by
`inspect --verify`: a bundle of 2 GB that was seen before starts at once.

T frames, H, W patch rows and columns, D hidden, N visual tokens, S prompt positions, V vocabulary.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from runtime.core.errors import BundleError
from runtime.core.files import atomic_file, sha256_of

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
VISION = "vision"  # graph names; the file of a graph is `<name>.onnx`
VISION_LOOP = "vision.loop"
VISION_ENCODER = "vision.encoder"
VISION_COMPRESSOR = "vision.compressor"
DECODER = "llm/decoder"
DECODER_BATCH = "llm/decoder.batch"
REPETITION_PENALTIES = 1e-3, 1e3  # least and most; logits divided by less, or times more, may overflow
BATCH = "B"  # the name of that graph's first axis


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says; one field a key.

    family            registry name of the model family, e.g. "llava-ov"
    checkpoint        {"id": hub id or directory name, "sha256": digest over the weight files}
    compression       {"preset", "spec": expanded spec, "place": "after-projector" | "before-projector"}
    frames            T, the frames that a clip is sampled to
    grid              [H, W] patch tokens of one frame
    tokens_per_clip   N, rows of `visual_tokens`, the closing newline token included
    hidden_size       D of the LLM
    preprocessing     {"size": [h, w], "resample", "rescale_factor", "image_mean", "image_std"}, and "frames": [h, w] where the
                      graphs take uint8 frames [T, h, w, 3] of that size instead of pixel values and do all that themselves
    prompt            {"chat_template": file, "video_token", "video_token_id", "eos_token_ids", "around_question": the rendered
                      template before and after a question, where it leaves questions as they are; "repetition_penalty": that of
                      the checkpoint's generation_config.json, absent for none}; {} without an LLM
    llm               {"layers", "kv_heads", "head_dim", "vocab_size", "attention", "precision", "block"}; {} without an LLM.
                      precision is "fp32" | "fp16" | "int8" | "int4" (of the weights; `precision` where it is absent), block of int4 alone
    precision         "fp32" | "fp16" | "int8" of the vision half's weights and activations
    opset             ONNX opset, the higher one where the graphs have two (int4 needs 21)
    limits            {"max_context": KV positions}; {} without an LLM
    stages            [{"name", "graph", "tensor", "every", "rounding"}]: tensors of the graphs that parity compares, in order;
                      rounding: what float32 alone does to torch's features (0 where an earlier export did not measure it)
    report            what the surgeon passes did: [{"graph", "pass", "rewrites", "note"}]
    files             {relative path: {"size": bytes, "sha256": hex}}
    versions          {tool: version} of everything that wrote the bundle
    """

    family: str
    checkpoint: dict[str, str]
    compression: dict[str, str]
    frames: int
    grid: list[int]
    tokens_per_clip: int
    hidden_size: int
    preprocessing: dict[str, Any]
    prompt: dict[str, Any]
    llm: dict[str, Any]
    precision: str
    opset: int
    limits: dict[str, int]
    stages: list[dict[str, Any]]
    report: list[dict[str, Any]]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def llm_precision(self) -> str:
        """Of the LLM half's weights; int8 and int4 compute and keep their cache in float32."""
        return self.llm.get("precision", self.precision)

    @property
    def patch_tokens(self) -> int:
        """Patch tokens of a clip before compression, T * H * W."""
        return self.frames * self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its directory and its manifest, files checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = False, progress: Callable[[str], None] | None = None) -> Bundle:
        """Read and check the bundle in directory `path`.

        verify: hash every file even where size and time are those of an earlier check.
        Raises BundleError, naming the file, for anything missing, truncated, altered or of a newer schema.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        _check_files(path, manifest, verify, progress)
        return cls(path, manifest)

    @property
    def has_llm(self) -> bool:
        return bool(self.manifest.llm)

    @property
    def is_split(self) -> bool:
        """Whether the vision half also lies here as encoder and compressor (`python -m export --split`), which is then what runs."""
        return f"{VISION_ENCODER}.onnx" in self.manifest.files

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists; BundleError where it lists none of that name."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path} has no {name}: it was exported without it; export again without --only")
        return self.path / name

    def model(self, graph: str) -> Path:
        """Path of a graph's ONNX file (`graph` is VISION or DECODER)."""
        return self.file(f"{graph}.onnx")

    def data_files(self, graph: str) -> list[str]:
        """The files with the external weights of `graph`; the graphs of one half ("vision", "vision.encoder") share theirs."""
        half = graph.partition(".")[0]
        return sorted(name for name in self.manifest.files if name.startswith(f"{half}.onnx."))

    def sha256(self, graph: str) -> str:
        """One digest for a graph and its external data; engines are keyed by it."""
        self.model(graph)  # raises with the message for an absent graph
        names = [f"{graph}.onnx", *self.data_files(graph)]
        return sha256("".join(self.manifest.files[name]["sha256"] for name in names).encode()).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Size and hash every file under `directory` into the manifest and write it there; return what was written."""
    found = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)
    listed = {
        p.relative_to(directory).as_posix(): {"size": p.stat().st_size, "sha256": sha256_of(p)}
        for p in found
        if p.relative_to(directory).parts[0] != "engines"
    }
    values = asdict(manifest) | {"files": listed}
    (directory / MANIFEST).write_text(json.dumps({"schema_version": values.pop("schema_version")} | values, indent=1) + "\n")
    return Manifest(**values)


def foreign_files(directory: Path) -> list[str]:
    """Files in a bundle's directory that neither its manifest lists nor a build wrote; all of them where it is no bundle.

    A manifest of any schema will do: what matters is which files the export wrote.
    """
    values = _read_json(directory / MANIFEST)
    ours = isinstance(values, dict) and type(values.get("schema_version")) is int and isinstance(values.get("files"), dict)
    known = {MANIFEST, *values["files"]} if ours else set()
    files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [file.as_posix() for file in files if file.as_posix() not in known and not (ours and file.parts[0] == "engines")]


def _read_manifest(path: Path) -> Manifest:
    if not path.exists():
        raise BundleError(
            f"no bundle at {path}: no such directory; write one with `python -m export --model llava-ov --out {path}`"
        )
    file = path / MANIFEST
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(values, ensure_ascii=False).encode()  # ValueError for half a surrogate pair, which can't be printed
    except FileNotFoundError:
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST}; expected a directory that `python -m export` wrote"
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{path} is a file; expected the bundle's directory") from None
    except OSError as error:
        raise BundleError(f"{file} can't be read: {error.strerror}; copy the bundle or export it again") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON ({error}); export the bundle again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if type(version) is not int or version < 1:
        raise BundleError(f"{file} has no schema_version; expected {SCHEMA_VERSION}, export the bundle again")
    if version > SCHEMA_VERSION:
        raise BundleError(f"{file} has schema {version}, this runtime reads up to {SCHEMA_VERSION}: update the runtime")
    known = {f.name for f in fields(Manifest)}
    missing = sorted(known - {"schema_version"} - values.keys())
    if missing:
        raise BundleError(f"{file} lacks {', '.join(missing)}; export the bundle again")
    # Keys that a later minor revision of the same schema added are of no concern to this reader.
    manifest = Manifest(**{key: value for key, value in values.items() if key in known})
    _check_values(file, manifest)
    return manifest


def _check_values(file: Path, manifest: Manifest) -> None:
    """Refuse values of another type than the runtime will take them for."""

    def check(name: str, fits: bool, expected: str) -> None:
        if not fits:
            raise BundleError(f"{file}: {name} is not {expected}; export the bundle again")

    for f in fields(Manifest):
        kind = {"int": int, "str": str}.get(str(f.type), list if str(f.type).startswith("list") else dict)
        check(f.name, type(getattr(manifest, f.name)) is kind, f"of type {kind.__name__}")
    for name in ("frames", "tokens_per_clip", "hidden_size", "opset"):
        check(name, _positive(getattr(manifest, name)), "a positive number")
    check("grid", _size(manifest.grid), "two positive numbers")
    check("checkpoint", _has(manifest.checkpoint, str, "id", "sha256"), "an id and a sha256")
    check("compression", _has(manifest.compression, str, "preset", "spec", "place"), "a preset, a spec and a place")
    check("stages", all(_has(stage, str, "name", "graph", "tensor") for stage in manifest.stages), "a list of named tensors")
    check(
        "stages",
        all(_positive(stage.get("every", 1)) for stage in manifest.stages),
        "a list of tensors thinned by a positive number",
    )
    check("stages", all(_number(stage.get("rounding", 0)) for stage in manifest.stages), "a list of tensors with a rounding from 0")
    check("report", all(_has(one, str, "graph", "pass", "note") for one in manifest.report), "a list of passes")
    check("versions", _has(manifest.versions, str, *manifest.versions), "a version for each tool")
    for name, entry in manifest.files.items():
        check(f"files: {name}", _has(entry, int, "size") and _has(entry, str, "sha256"), "a size and a sha256")
    check("precision", manifest.precision in ("fp32", "fp16", "int8"), "fp32, fp16 or int8")
    graphs = [graph for graph in (VISION, DECODER) if f"{graph}.onnx" in manifest.files]
    check("files", bool(graphs), f"a list with {VISION}.onnx or {DECODER}.onnx")
    parts = [graph for graph in (VISION_ENCODER, VISION_COMPRESSOR) if f"{graph}.onnx" in manifest.files]
    check("files", len(parts) != 1, f"a list with both of {VISION_ENCODER}.onnx and {VISION_COMPRESSOR}.onnx, or neither")
    check("llm", bool(manifest.llm) == (DECODER in graphs), f"filled in exactly where there is a {DECODER}.onnx")
    if manifest.llm:
        facts = all(_positive(manifest.llm.get(key)) for key in ("layers", "kv_heads", "head_dim"))
        check("llm", facts, "the LLM's layers, kv_heads and head_dim")
        check("llm", manifest.llm_precision in ("fp32", "fp16", "int8", "int4"), "of precision fp32, fp16, int8 or int4")
        check("limits", _positive(manifest.limits.get("max_context")), "a max_context")
        ids = manifest.prompt.get("eos_token_ids")
        check("prompt", _has(manifest.prompt, str, "chat_template", "video_token"), "a chat_template and a video_token")
        check("prompt", _has(manifest.prompt, int, "video_token_id"), "a video_token_id")
        check("prompt", isinstance(ids, list) and all(type(i) is int for i in ids), "a list of eos_token_ids")
        around = manifest.prompt.get("around_question", ["", ""])  # bundles of earlier exports have none
        two = isinstance(around, list) and len(around) == 2 and all(isinstance(text, str) for text in around)
        check("prompt", two, "the two texts of around_question")
        penalty = manifest.prompt.get("repetition_penalty", 1)
        least, most = REPETITION_PENALTIES
        check("prompt", _number(penalty) and least <= penalty <= most, f"a repetition_penalty from {least:g} to {most:g}")


def _positive(value: Any) -> bool:
    """Whether it is a number that counts something: no bundle has 2^31 of anything, and products of such fit 64 bits no more."""
    return type(value) is int and 0 < value < 1 << 31


def _number(value: Any) -> bool:
    """Whether it is a number from 0 that float64 holds."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_positive, value))


def _has(value: Any, kind: type, *keys: str) -> bool:
    return isinstance(value, dict) and all(type(value.get(key)) is kind for key in keys)


def _check_files(path: Path, manifest: Manifest, verify: bool, progress: Callable[[str], None] | None) -> None:
    root = path.resolve()
    stamps: dict[str, list[int]] = {}
    for name, entry in manifest.files.items():
        file = path / name
        if "\0" in name or not file.resolve().is_relative_to(root):
            raise BundleError(f"{path / MANIFEST} lists {name!r}, which lies outside the bundle; export the bundle again")
        if not file.is_file():
            raise BundleError(f"{file} is missing; copy the whole bundle directory or export it again")
        stat = file.stat()
        if stat.st_size != entry["size"]:
            raise BundleError(
                f"{file} has {stat.st_size} bytes, the manifest says {entry['size']}: it is truncated or altered; copy or export it again"
            )
        stamps[name] = [stat.st_size, stat.st_mtime_ns]
    seen = _stamp_file(root)
    identity = {"manifest": sha256_of(path / MANIFEST), "stamps": stamps}
    if not verify and seen is not None and _read_json(seen) == identity:
        return
    for name, entry in manifest.files.items():
        if progress:
            progress(f"checking {name}")
        if _sha256(path / name) != entry["sha256"]:
            raise BundleError(f"{path / name} was altered: its SHA-256 is not the manifest's; copy or export it again")
    if seen is None:
        return
    try:
        with atomic_file(seen) as temporary:
            temporary.write_text(json.dumps(identity))
    except OSError:
        pass  # no writable cache: the next load hashes again


def _sha256(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        raise BundleError(f"{file} can't be read: {error.strerror}; copy or export it again") from None


def _stamp_file(root: Path) -> Path | None:
    """Where an earlier check of the bundle at `root` is remembered; None for a user without a home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return cache / "st-gridpool" / "verified" / f"{sha256(os.fsencode(root)).hexdigest()[:32]}.json"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
