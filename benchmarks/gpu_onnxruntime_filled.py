"""A bundle without its weights, which travels in megabytes, and the same graphs with random weights, made where they run.

    python benchmarks/gpu_onnxruntime.py --strip BUNDLE DIR      # once, where the bundle was exported
    python benchmarks/gpu_onnxruntime.py --fill DIR OUT          # where it is to run

For times alone: shapes, dtypes and nodes are the exported ones, the numbers are not, and `parity` has nothing to compare with.
Weights are scaled by fan-in, so that everything stays finite in float16. The graphs kept are those that a GPU runs: vision and
decoder.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import log
from workload import pixel_values

GRAPHS = ("vision.onnx", "llm/decoder.onnx")
ROWS = "llm/embed_tokens.npy"
TEXTS = ("llm/tokenizer.json", "llm/chat_template.jinja")
_ALIGNED, _LARGE = 4096, 4096  # bytes between tensors of a data file; values of a tensor that is left out
_KEYS = ("location", "offset", "length")


def strip(source: Path, out: Path) -> None:
    """Write the bundle at `source` to `out` without weights, embeddings and references."""
    import onnx

    out.mkdir(parents=True, exist_ok=True)
    for graph in GRAPHS:
        model = onnx.load(str(source / graph), load_external_data=False)
        offset = 0
        for tensor in model.graph.initializer:
            values = int(np.prod(tensor.dims))
            if not (tensor.name.endswith(("weight", "embedding")) and len(tensor.dims) > 1 and values >= _LARGE):
                continue
            length = values * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            tensor.ClearField("raw_data")
            del tensor.external_data[:]
            for key, value in zip(_KEYS, (f"{Path(graph).name}.data", offset, length), strict=True):
                tensor.external_data.add(key=key, value=str(value))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            offset += -(-length // _ALIGNED) * _ALIGNED
        (out / graph).parent.mkdir(exist_ok=True)
        onnx.save(model, str(out / graph))
    for text in (*TEXTS, "manifest.json"):
        shutil.copyfile(source / text, out / text)
    rows = np.load(source / ROWS, mmap_mode="r")
    (out / "rows.json").write_text(json.dumps({"shape": rows.shape, "dtype": str(rows.dtype)}), encoding="utf-8")


def fill(source: Path, out: Path) -> None:
    """Write what `strip` left at `source` to `out` as a bundle that runs."""
    from runtime.bundle import Bundle, write_manifest

    manifest = Bundle.open(_listed(source, out)).manifest
    for graph in GRAPHS:
        log(f"filling {graph}")
        _fill_graph(out / graph)
    rows = json.loads((source / "rows.json").read_text(encoding="utf-8"))
    table = _normal(tuple(rows["shape"]), rows["shape"][1] ** -0.5, 1)
    np.save(out / ROWS, table.astype(rows["dtype"]))
    (out / "reference").mkdir(exist_ok=True)
    _write_clip(out, manifest)
    files: dict[str, Any] = {path.relative_to(out).as_posix(): {} for path in out.rglob("*") if path.is_file()}
    files.pop("manifest.json")
    write_manifest(out, replace(manifest, files=files))


def _listed(source: Path, out: Path) -> Path:
    """Copy what there is to `out`, with a manifest that lists it."""
    from runtime.core.files import sha256_of

    out.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {}
    for name in (*GRAPHS, *TEXTS):
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, out / name)
        manifest["files"][name] = {"size": (out / name).stat().st_size, "sha256": sha256_of(out / name)}
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def _fill_graph(path: Path) -> None:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in tensors]
    end = max(int(place["offset"]) + int(place["length"]) for place in places)
    data = np.memmap(path.with_name(places[0]["location"]), np.uint8, "w+", shape=(end,))

    def write(index: int) -> None:
        tensor, offset, length = tensors[index], int(places[index]["offset"]), int(places[index]["length"])
        shape = tuple(tensor.dims)
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]  # a convolution [C, 3, h, w], a product [in, out]
        values = _normal(shape, fan_in**-0.5, index).astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        data[offset : offset + length] = np.frombuffer(values.tobytes(), np.uint8)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(len(tensors))))
    data.flush()


def _normal(shape: tuple[int, ...], deviation: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(deviation)


def _write_clip(out: Path, manifest: Any) -> None:
    """The reference input as `runtime.tools.reference.clip` reads it."""
    buffer = io.BytesIO()
    np.save(buffer, pixel_values(manifest.frames, manifest.preprocessing.size[0]))
    feed = {"pixel_values": {"array": base64.b64encode(buffer.getvalue()).decode()}}
    (out / "reference" / "inputs.json").write_text(json.dumps([feed]), encoding="utf-8")
