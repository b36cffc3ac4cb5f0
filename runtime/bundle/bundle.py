"""An opened bundle: its directory and its manifest, checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from runtime.bundle.files import MANIFEST, check_files
from runtime.bundle.graphs import COMPONENTS, DECODER, SPLIT, VISION, VISION_LOOP, component_of, file_of
from runtime.bundle.manifest import SCHEMA_VERSION, LLMInfo, Manifest, PromptInfo, read
from runtime.core.errors import BundleError


@dataclass(frozen=True)
class Bundle:
    """A bundle's directory and manifest, and which graphs it has for which device."""

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
        check_files(path, manifest, verify, progress)
        return cls(path, manifest)

    @property
    def has_llm(self) -> bool:
        return self.manifest.llm is not None

    @property
    def llm(self) -> LLMInfo:
        """The decoder's sizes; BundleError without an LLM."""
        return self.manifest.llm or self._lacks("LLM")

    @property
    def prompt(self) -> PromptInfo:
        """What prompts are made of; BundleError without an LLM."""
        return self.manifest.prompt or self._lacks("LLM")

    @property
    def max_context(self) -> int:
        """Positions of the KV cache; BundleError without an LLM."""
        return (self.manifest.limits or self._lacks("LLM")).max_context

    @property
    def components(self) -> tuple[str, ...]:
        """VISION, DECODER, or both."""
        return tuple(graph for graph in COMPONENTS if self.has(graph))

    @property
    def is_split(self) -> bool:
        """Whether the vision encoder runs as encoder and compressor (`python -m export --split`)."""
        return self.has(SPLIT[0])

    def has(self, graph: str) -> bool:
        return file_of(graph) in self.manifest.files

    def vision_graphs(self, device: str) -> tuple[str, ...]:
        """The graphs that encode a clip on `device`, in the order of the data.

        On a CPU the frames of a clip one by one are faster and need less memory than all at once.
        """
        if self.is_split:
            return SPLIT
        return (VISION_LOOP if device == "cpu" and self.has(VISION_LOOP) else VISION,)

    def graphs(self, device: str) -> tuple[str, ...]:
        """The graphs that answer questions on `device`, as far as the bundle has them."""
        return tuple(graph for graph in (*self.vision_graphs(device), DECODER) if self.has(graph))

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists; BundleError if it does not list `name`."""
        if name not in self.manifest.files:
            self._lacks(name)
        return self.path / name

    def model(self, graph: str) -> Path:
        """Path of a graph's ONNX file."""
        return self.file(file_of(graph))

    def data_files(self, graph: str) -> list[str]:
        """The files with the external weights of `graph`; the graphs of one component share theirs."""
        return sorted(name for name in self.manifest.files if name.startswith(f"{file_of(component_of(graph))}."))

    def sha256(self, graph: str) -> str:
        """One digest for a graph and its external data; engines are keyed by it."""
        self.model(graph)  # raises with the message for an absent graph
        names = [file_of(graph), *self.data_files(graph)]
        return sha256("".join(self.manifest.files[name].sha256 for name in names).encode()).hexdigest()

    def _lacks(self, name: str) -> NoReturn:
        raise BundleError(f"{self.path} has no {name}: it was exported without it; export again without --only")


def _read_manifest(path: Path) -> Manifest:
    if not path.exists():
        raise BundleError(
            f"no bundle at {path}: no such directory; write one with `python -m export --model llava-ov --out {path}`"
        )
    file = path / MANIFEST
    try:
        values = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
        json.dumps(values, ensure_ascii=False).encode()  # ValueError for a lone surrogate, which can't be printed
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
    from runtime.bundle.schema import check  # a module that is also a command must not be loaded by its package

    check(values, str(file))
    return read(Manifest, values)


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
