"""The weight files of a checkpoint: which of them are the model, which tensors they have, and a module filled from them.

    weight_files(checkpoint)     model.safetensors, or the shards of its index, as transformers chooses them
    check_weights(...)           from the files' headers alone, refuses what `load_weights` would refuse by name, shape or type
    load_weights(...)            fills a module; refuses values that are not finite

Weights are read shard by shard, only those that the module asks for, so that exporting the vision encoder of a 7B model never
reads its LLM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from export.checkpoint import ADAPTER, Checkpoint, refuse_lfs_pointer
from runtime.core.errors import CheckpointError
from runtime.core.files import sha256_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_SHARDS = "model-*-of-*.safetensors"
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
UNQUANTIZED = "pass the checkpoint that has not been quantized (the export quantizes by itself: --llm-precision int8 or int4)"

_FLOATS = ("F32", "F16", "BF16", "F64")  # safetensors' names
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# What GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, HQQ and MXFP4 add to, or put in place of, a layer's weight.
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|absmax|quant_map|quant_state\.\w+|SCB|W_q|weight_packed|weight_scale(_inv)?|weight_zero_point"
    r"|weight_g_idx|weight_scale_2|input_scale|_weight_qdata|_weight_scale|scales)$|_proj_(blocks|scales)$"
)
_CONFIGS = ("quantization_config", "compression_config")  # keys of config.json, or of its parts
_CONFIG_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt"}

Rename = Callable[[str], "str | None"]


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The safetensors files of the model, downloaded first where the checkpoint is on the hub.

    As in transformers, model.safetensors alone is the model where it exists, then the shards that the index names; other
    *.safetensors files beside them (adapters, other formats) are not read. Shards without an index are read if none is missing.
    """
    path = checkpoint.path
    checkpoint.fetch(_names(checkpoint) or [MODEL, _SHARDS])
    files = [path / name for name in _names(checkpoint) or _shards_without_index(path)]
    if not files:
        raise CheckpointError(_without_weights(checkpoint))
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; download or copy the checkpoint again")
    return files


def _names(checkpoint: Checkpoint) -> list[str]:
    if (checkpoint.path / MODEL).exists():
        return [MODEL]
    index = checkpoint.json(INDEX)
    if index is None:
        return []
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{checkpoint.path}: the index of the weights has no weight_map of file names; copy {INDEX} again")
    return sorted(set(names.values()))


def _shards_without_index(path: Path) -> list[str]:
    matches = [match for file in path.glob(_SHARDS) if (match := _SHARD.fullmatch(file.name))]
    counts = {match[2] for match in matches}
    return [f"model-{n:05d}-of-{count}.safetensors" for count in sorted(counts) for n in range(1, int(count) + 1)]


def _without_weights(checkpoint: Checkpoint) -> str:
    """Why a directory without the model's weights can't be exported, by what it has instead."""
    path = checkpoint.path
    saved = "save the model with transformers' save_pretrained"
    other = sorted(file.name for file in path.glob("*.safetensors"))
    if (path / ADAPTER).exists() or "adapter_model.safetensors" in other:
        return f"{path} is {checkpoint.adapter()}"
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        return f"{path} has no {MODEL} and no {INDEX}, only {other[0]}{more}; {saved}"
    pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in path.glob(kind))
    found = f", only {pickled[0]}" if pickled else ""
    return f"{path} has no *.safetensors{found}; {saved}"


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """CheckpointError where the configs say that the weights are quantized, naming the method; no weights are read."""
    config = checkpoint.config()
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _CONFIGS:
            if part.get(key):
                method = _method(part[key])
                raise CheckpointError(f"{checkpoint.path / 'config.json'}: {key} says that the weights are {method}; {UNQUANTIZED}")
    for name, method in _CONFIG_FILES.items():
        if checkpoint.json(name):
            raise CheckpointError(f"{checkpoint.path / name} says that the weights are quantized ({method}); {UNQUANTIZED}")


def _method(quantization: Any) -> str:
    """ "quantized (awq, 4 bits)" of a quantization_config."""
    values = quantization if isinstance(quantization, dict) else {}
    method = values.get("quant_method", "bitsandbytes" if any("load_in" in key for key in values) else None)
    bits = values.get("bits", values.get("w_bit"))
    about = [*([method] if isinstance(method, str) else []), *([f"{bits} bits"] if type(bits) is int else [])]
    return f"quantized ({', '.join(about)})" if about else "quantized"


def weights_sha256(checkpoint: Checkpoint) -> str:
    """One digest over the weight files, in the order of their names."""
    try:
        return sha256("".join(sha256_of(file) for file in weight_files(checkpoint)).encode()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{error.filename or checkpoint.path} can't be read: {error.strerror}; copy it again") from None


def load_weights(checkpoint: Checkpoint, module: nn.Module, rename: Rename, tied: Mapping[str, str] = MappingProxyType({})) -> None:
    """Fill `module` (its parameters' storage is replaced) from the checkpoint, in the module's own dtype.

    rename: checkpoint key -> name in `module.state_dict()`, None for a key of a component that was not asked for
    tied:   {name: name that it shares its tensor with} where the config ties them and the file may lack the first
    """
    check_weights(checkpoint, module, rename, tied)
    wanted = module.state_dict()
    found = {name: tensor.to(wanted[name].dtype) for name, tensor in _finite_tensors(checkpoint, rename)}
    for name, source in tied.items():
        found.setdefault(name, found[source])
    module.load_state_dict(found, assign=True)
    module.requires_grad_(False)


def check_finite(checkpoint: Checkpoint, rename: Rename) -> None:
    """Refuse NaN and infinite values in the weights that `rename` names, before the export of another component starts."""
    for _ in _finite_tensors(checkpoint, rename):
        pass


def check_weights(
    checkpoint: Checkpoint, module: nn.Module, rename: Rename, tied: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Refuse weights that `load_weights` would refuse, by name, shape and type; only the files' headers are read.

    `module` may be on the meta device.
    """
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    found: set[str] = set()
    extra: list[str] = []
    for key, shard in _tensors(checkpoint):
        name = rename(key)
        if name is None:
            continue
        if _QUANTIZED.search(key):
            raise CheckpointError(f"{checkpoint.path} is quantized: its weights have {key}; {UNQUANTIZED}")
        if name not in wanted:
            extra.append(key)
            continue
        header = shard.get_slice(key)
        if header.get_dtype() not in _FLOATS:
            raise CheckpointError(
                f"{checkpoint.path}: {key} is of type {header.get_dtype()}, expected one of {', '.join(_FLOATS)}; {UNQUANTIZED}"
            )
        if list(header.get_shape()) != wanted[name]:
            raise CheckpointError(
                f"{checkpoint.path}: {key} has shape {list(header.get_shape())}, the config asks for {wanted[name]}; "
                "its config and weights do not belong together"
            )
        found.add(name)
    found |= {name for name, source in tied.items() if source in found}
    _refuse(checkpoint, "lacks", sorted(wanted.keys() - found))
    _refuse(checkpoint, "has unknown", sorted(extra))


def _finite_tensors(checkpoint: Checkpoint, rename: Rename) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for key, shard in _tensors(checkpoint):
        name = rename(key)
        if name is None:
            continue
        tensor = shard.get_tensor(key)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{checkpoint.path}: {key} has NaN or infinite values; download or train it again")
        yield name, tensor


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """(key, the open safetensors file that has it), shard by shard."""
    from safetensors import SafetensorError, safe_open

    for file in weight_files(checkpoint):
        try:
            refuse_lfs_pointer(file)
            with safe_open(file, framework="pt") as shard:
                for key in shard.keys():  # noqa: SIM118 - a safe_open is not a mapping
                    yield key, shard
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file ({error}); download or copy it again") from None


def _refuse(checkpoint: Checkpoint, verb: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.path} {verb} weights: {', '.join(names[:3])}{more}; its config and weights do not belong together"
        )
