"""What is loaded: bundles by name, each with its vision encoder, and the LLMs, shared where possible.

Bundles exported from one checkpoint with different compression have the same decoder. It is loaded once and its batch serves all of
them, so that a small machine can offer several presets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.bundle import DECODER, Bundle
from runtime.bundle.manifest import written
from runtime.core.errors import BundleError, UsageError, nearest
from runtime.llm.chat import LanguageModel
from runtime.llm.decoder import check_context
from runtime.llm.local import LocalLLM
from runtime.llm.remote import RemoteLLM
from runtime.server.clip_encoder import ClipEncoder
from runtime.server.errors import ApiError
from runtime.server.options import ServerOptions


@dataclass(frozen=True)
class ServedModel:
    """One bundle under the name that requests give."""

    name: str
    bundle: Bundle
    encoder: ClipEncoder
    llm: LanguageModel | None  # None for a bundle without one, which serves tokens only

    def card(self) -> dict[str, Any]:
        """Its entry in GET /v1/models."""
        manifest = self.bundle.manifest
        return {
            "id": self.name,
            "object": "model",
            "created": int((self.bundle.path / "manifest.json").stat().st_mtime),
            "owned_by": manifest.checkpoint.id,
            "max_model_len": self.llm.max_context if self.llm else None,
            "tokens_per_clip": manifest.tokens_per_clip,
            "patch_tokens_per_clip": manifest.patch_tokens,
            "frames": manifest.frames,
            "hidden_size": manifest.hidden_size,
            "compression": written(manifest.compression),
        }

    def check_frames(self, count: int | None, param: str) -> None:
        """ApiError if `count` is not the bundle's number of frames."""
        frames = self.bundle.manifest.frames
        if count is not None and count != frames:
            other = f", or export with --frames {count}" if count > 0 else ""
            message = f"{param} is {count}, but this bundle takes {frames} frames of every clip: leave it out{other}"
            raise ApiError(400, message, "unsupported_value", param)


class Models:
    """`models[name]`; ApiError 404 for a name that is not served."""

    def __init__(self, served: Sequence[ServedModel]):
        self.served = {model.name: model for model in served}

    @classmethod
    def open(cls, paths: Sequence[Path], options: ServerOptions) -> Models:
        """Load everything. If a bundle can't be served, the UserError comes before anything heavy is loaded."""
        local, backend, engine = options.llm.is_local, options.backend, options.engine
        bundles = {_name(path): Bundle.open(path) for path in paths}
        if len(bundles) < len(paths):
            raise UsageError(f"two bundles would have the same name: {', '.join(map(_name, paths))}; rename a directory")
        if local and not any(bundle.has_llm for bundle in bundles.values()):
            raise BundleError(f"{paths[0]} has no LLM; export without --only vision, or name a remote one with --llm URL")
        for bundle in bundles.values():
            if local and bundle.has_llm:
                check_context(bundle.manifest.tokens_per_clip + 1, bundle.max_context)
        decoders: dict[str, LocalLLM] = {}
        served = []
        for name, bundle in bundles.items():
            llm: LanguageModel | None = None
            if not local:
                llm = RemoteLLM(bundle, options.llm)
            elif bundle.has_llm:
                key = bundle.sha256(DECODER) + bundle.manifest.files["llm/tokenizer.json"].sha256
                if key not in decoders:
                    decoders[key] = LocalLLM.open(bundle, options.batch, backend, engine)
                llm = decoders[key].sharing(bundle)
            served.append(ServedModel(name, bundle, ClipEncoder(bundle, backend, engine, options.limits), llm))
        return cls(served)

    def __getitem__(self, name: str) -> ServedModel:
        if name not in self.served:
            raise ApiError(404, f'no model "{name}"{nearest(name, self.served)}', "model_not_found", "model")
        return self.served[name]

    @property
    def llms(self) -> list[LanguageModel]:
        """Each LLM once, however many bundles share it."""
        return list({id(model.llm.shared): model.llm for model in self.served.values() if model.llm}.values())

    def close(self) -> None:
        for llm in self.llms:
            llm.close()


def _name(path: Path) -> str:
    return Path(path).resolve().name
