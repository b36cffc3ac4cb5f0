"""A checkpoint directory in Hugging Face layout: where it is and what its JSON files say.

In: nothing (the checkpoint that ships with this package), a local directory, or a hub id.
Out: its directory and its configs as dicts; `export.weights` reads the rest. The weights of a checkpoint on the hub are downloaded
when they are first needed, after its small files were checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from runtime.core.errors import CheckpointError

SHIPPED = Path(__file__).parent / "demo" / "checkpoint"  # the small one that ships with this package
ADAPTER = "adapter_config.json"

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_HUB_FILES = ("*.safetensors.index.json", "*config.json", "tokenizer.json", "chat_template.*")
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Checkpoint:
    """path: its directory; id: the hub id, or the directory's name; demo: whether it is the one that ships with the package;
    hub: whether its weights are still to be downloaded."""

    path: Path
    id: str
    demo: bool = False
    hub: bool = False

    def json(self, name: str) -> dict[str, Any] | None:
        """The JSON object in file `name`, None where there is no such file."""
        file = self.path / name
        if not file.exists():
            return None
        try:
            refuse_lfs_pointer(file)
            values = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{file} can't be read: {error.strerror}; copy the checkpoint again") from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} is a JSON {type(values).__name__}, expected a JSON object")
        return values

    def config(self) -> dict[str, Any]:
        """`config.json`; CheckpointError where the directory has none."""
        values = self.json("config.json")
        if values is None and (self.path / ADAPTER).exists():
            raise CheckpointError(f"{self.path} is {self.adapter()}")
        if values is None:
            inside = sorted(file.parent for file in self.path.glob("*/config.json"))
            pass_it = f"; pass one that has: {', '.join(map(str, inside[:3]))}" if inside else ""
            raise CheckpointError(f"{self.path} has no config.json; expected a Hugging Face checkpoint directory{pass_it}")
        return values

    def adapter(self) -> str:
        """Describes a directory that holds nothing but an adapter, and says what to do with it."""
        base = (self.json(ADAPTER) or {}).get("base_model_name_or_path")
        return (
            f"an adapter without its base model{f' {base}' if isinstance(base, str) and base else ''} ({ADAPTER}); merge the two "
            "(peft: merge_and_unload, then save_pretrained) and pass the merged checkpoint"
        )

    def fetch(self, patterns: Sequence[str]) -> None:
        """Download files of a checkpoint on the hub; does nothing for a local one."""
        if self.hub:
            _download(self.id, tuple(patterns), self.path.name)  # a snapshot's directory is named after its commit


def refuse_lfs_pointer(file: Path) -> None:
    """CheckpointError where a clone without Git LFS left a pointer in the file's place."""
    with file.open("rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself; run git lfs pull, or download it again")


def open_checkpoint(source: str | None) -> Checkpoint:
    """Find a checkpoint: None for the one that ships here, a directory, or a hub id (downloaded through huggingface_hub)."""
    if source is None:
        return Checkpoint(SHIPPED, "st-gridpool-demo", demo=True)
    path = Path(source)
    if path.is_dir():
        return Checkpoint(path, path.resolve().name)
    if path.exists():
        raise CheckpointError(f"{path} is a file; expected a Hugging Face checkpoint directory or a hub id")
    if not _HUB_ID.match(source):
        raise CheckpointError(f"no checkpoint at {source}: no such directory; pass one, or a hub id such as llava-hf/NAME")
    return Checkpoint(_download(source, _HUB_FILES), source, hub=True)


@cache
def _download(hub_id: str, patterns: tuple[str, ...], revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client raises many kinds: offline, unknown id, gated, no disk
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{hub_id} could not be downloaded ({reason}); check the id and the network, or pass a local directory to --checkpoint"
        ) from None
