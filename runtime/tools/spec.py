"""A compression spec as the manifest stores it, read for display: "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2" -> stages.

The manifest's spec is expanded and was checked by the export, which owns the grammar; this reads it without a second copy
of the stages' options and defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.core.errors import BundleError


@dataclass(frozen=True, eq=False)  # a key by identity: options are a dict
class SpecStage:
    """One stage: its name in the manifest's `stages` without "compress/" (a second nsp is nsp_2), its kind, its options.

    options: {name: numbers}, a single number being a list of one.
    """

    name: str
    kind: str
    options: dict[str, tuple[float, ...]]

    def number(self, option: str, default: float) -> float:
        """One option's number; `default` where the spec leaves it out."""
        return self.options.get(option, (default,))[0]


def read_spec(spec: str) -> list[SpecStage]:
    """The stages of an expanded spec; BundleError for text that is none."""
    stages: list[SpecStage] = []
    try:
        for part in spec.split("+"):
            kind, _, arguments = part.partition(":")
            pairs = (item.split("=") for item in arguments.split(",") if item)
            options = {key: tuple(map(float, value.split("/"))) for key, value in pairs}
            repeats = sum(stage.kind == kind for stage in stages)
            stages.append(SpecStage(f"{kind}_{repeats + 1}" if repeats else kind, kind, options))
    except ValueError:
        raise BundleError(f"the manifest's compression spec is \"{spec}\", which can't be read; export the bundle again") from None
    return stages
