"""A checkpoint directory in Hugging Face layout: where it is, what its configs say, and its weights, checked.

In: nothing (the checkpoint that ships with this package), a local directory, or a hub id.
Out: configs as dicts, the digest of the weight files, and `load_weights`, which fills a module and refuses weights that
are missing, extra, of another shape or not finite. Weights are read shard by shard from safetensors, only those that the
module asks for, so that exporting the vision half of a 7B model never reads its LLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from export.demo import CHECKPOINT
from runtime.errors import CheckpointError
from runtime.files import sha256_of

if TYPE_CHECKING:
    import torch
    from torch import nn

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_FLOATS = ("F32", "F16", "BF16", "F64")  # safetensors' names
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer.json", "chat_template.*"]


@dataclass(frozen=True)
class Checkpoint:
    """path: its directory; id: the hub id, or the directory's name; demo: it is the one that ships with the package."""

    path: Path
    id: str
    demo: bool = False

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name`, None where there is no such file."""
        file = self.path / name
        if not file.exists():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{file} can't be read: {error.strerror}; copy the checkpoint again") from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} holds a {type(values).__name__}, expected a JSON object")
        return values

    def config(self) -> dict[str, Any]:
        """`config.json`; CheckpointError where the directory has none."""
        values = self.json("config.json")
        if values is None:
            raise CheckpointError(f"{self.path} has no config.json; expected a Hugging Face checkpoint directory")
        return values

    def weight_files(self) -> list[Path]:
        """The safetensors files, those of the index where there is one."""
        index = self.json("model.safetensors.index.json")
        if index is None:
            files = sorted(self.path.glob("*.safetensors"))
        else:
            names = index.get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise CheckpointError(f"{self.path}: the index of the weights has no weight_map of file names; copy it again")
            files = [self.path / name for name in sorted(set(names.values()))]
        if not files:
            raise CheckpointError(f"{self.path} has no *.safetensors; convert the checkpoint with transformers' save_pretrained")
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file} is missing; download or copy the checkpoint again")
        return files

    def sha256(self) -> str:
        """One digest over the weight files, in the order of their names."""
        try:
            return sha256("".join(sha256_of(file) for file in self.weight_files()).encode()).hexdigest()
        except OSError as error:
            raise CheckpointError(f"{error.filename or self.path} can't be read: {error.strerror}; copy it again") from None


def open_checkpoint(source: str | None) -> Checkpoint:
    """Find a checkpoint: None for the one that ships here, a directory, or a hub id (downloaded through huggingface_hub)."""
    if source is None:
        return Checkpoint(CHECKPOINT, "st-gridpool-demo", demo=True)
    path = Path(source)
    if path.is_dir():
        return Checkpoint(path, path.resolve().name)
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected a Hugging Face checkpoint directory or a hub id")
    if not _HUB_ID.match(source):
        raise CheckpointError(f"no checkpoint at {source}: no such directory; expected one, or a hub id such as llava-hf/NAME")
    return Checkpoint(_download(source), source)


def load_weights(
    checkpoint: Checkpoint, module: nn.Module, rename: Callable[[str], str | None], tied: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Fill `module` (its parameters' storage is replaced) from the checkpoint, in the module's own dtype.

    rename: checkpoint key -> name in `module.state_dict()`, None for a key that belongs to a half that was not asked for
    tied:   {name: name that it shares its tensor with} where the config ties them and the file may lack the first
    """
    import torch

    check_weights(checkpoint, module, rename, tied)
    wanted = module.state_dict()
    found: dict[str, torch.Tensor] = {}
    for key, shard in _tensors(checkpoint):
        name = rename(key)
        if name is None:
            continue
        tensor = shard.get_tensor(key)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{checkpoint.path}: {key} holds NaN or infinite values; download or train it again")
        found[name] = tensor.to(wanted[name].dtype)
    for name, source in tied.items():
        found.setdefault(name, found[source])
    module.load_state_dict(found, assign=True)
    module.requires_grad_(False)


def check_weights(
    checkpoint: Checkpoint, module: nn.Module, rename: Callable[[str], str | None], tied: Mapping[str, str] = MappingProxyType({})
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
        if name not in wanted:
            extra.append(key)
            continue
        header = shard.get_slice(key)
        if list(header.get_shape()) != wanted[name]:
            raise CheckpointError(
                f"{checkpoint.path}: {key} has shape {list(header.get_shape())}, the config asks for {wanted[name]}"
            )
        if header.get_dtype() not in _FLOATS:
            raise CheckpointError(
                f"{checkpoint.path}: {key} is of type {header.get_dtype()}, expected one of {', '.join(_FLOATS)}; "
                "pass the checkpoint that has not been quantized"
            )
        found.add(name)
    found |= {name for name, source in tied.items() if source in found}
    _refuse(checkpoint, "lacks", sorted(wanted.keys() - found))
    _refuse(checkpoint, "has unknown", sorted(extra))


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Any]]:
    """(key, the open safetensors file that has it), shard by shard."""
    from safetensors import SafetensorError, safe_open

    for file in checkpoint.weight_files():
        try:
            with safe_open(file, framework="pt") as shard:
                for key in shard.keys():  # noqa: SIM118 - a safe_open is no mapping
                    yield key, shard
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is not a readable safetensors file ({error}); download or copy it again") from None


def _refuse(checkpoint: Checkpoint, verb: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.path} {verb} weights: {', '.join(names[:3])}{more}; its config and weights do not belong together"
        )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds: offline, unknown id, gated, no disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{hub_id} could not be downloaded ({reason}); check the id and the network, or pass a local directory to --checkpoint"
        ) from None
