"""Token compression: a spec such as "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2" -> a module of static shapes.

    make(spec, frames, height, width)   nn.Module, [T, H, W, D] -> [num_tokens, D]
    expand(spec or preset)              the spec with every option written out, as the manifest stores it
    presets(), STAGES                   what there is, for `python -m export --list`

A new stage is one file (a `Stage` with its `Options`) and one line in STAGES; the grammar, the help and the checks follow from it.
"""

from __future__ import annotations

from export.compress.avgpool import AvgPool
from export.compress.bilinear import Bilinear
from export.compress.chain import Compressor
from export.compress.evs import EVS
from export.compress.nsp import NSP
from export.compress.ptg import PTG
from export.compress.segmean import SegMean
from export.compress.stage import Stage
from export.compress.topk import TopK
from export.compress.vidcom2 import VidCom2
from plugins import spec as _spec

STAGES: dict[str, type[Stage]] = {
    "bilinear": Bilinear,
    "avgpool": AvgPool,
    "ptg": PTG,
    "nsp": NSP,
    "segmean": SegMean,
    "topk": TopK,
    "evs": EVS,
    "vidcom2": VidCom2,
}

PRESETS = {
    "llava-ov": "bilinear:stride=2",
    "uniform": "avgpool:window=2",
    "norm": "nsp:window=2",
    "norm-9x": "nsp:window=3",  # ours: an odd grid that three divides loses no edge (benchmarks/results/accuracy.md)
    "st-gridpool": "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2",
    "st-gridpool-8x": "ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2+topk:keep=0.5",
    "grid-topk": "segmean:levels=2+topk:keep=0.25,cell=6",
    "evs": "evs:keep=0.5",
    "vidcom2": "vidcom2:keep=0.25",
}
DEFAULT_PRESET = "st-gridpool"


def make(spec: str, frames: int, height: int, width: int) -> Compressor:
    """The compressor of a spec or preset for clips of `frames` frames of height x width tokens; SpecError where it does not fit."""
    parsed = _parse(spec)
    return Compressor(
        [(stage.name, STAGES[stage.name], stage.options) for stage in parsed], _spec.format(parsed), frames, height, width
    )


def expand(spec: str) -> str:
    """A spec or preset with every option written out; SpecError names what is wrong with it."""
    return _spec.format(_parse(spec))


def presets() -> dict[str, str]:
    """{preset: expanded spec}."""
    return {name: expand(text) for name, text in PRESETS.items()}


def _parse(spec: str) -> list[_spec.Parsed]:
    return _spec.parse(spec, {name: stage.Options for name, stage in STAGES.items()}, PRESETS)
