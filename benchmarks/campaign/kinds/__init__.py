"""The kinds, in the order of the report."""

from __future__ import annotations

from benchmarks.campaign.kinds.batch_parts import BatchParts
from benchmarks.campaign.kinds.bodies import Bodies
from benchmarks.campaign.kinds.bundle_files import BundleFiles
from benchmarks.campaign.kinds.checkpoint import Checkpoint
from benchmarks.campaign.kinds.cpp_fuzz import CppFuzz
from benchmarks.campaign.kinds.cpp_media import CppMedia
from benchmarks.campaign.kinds.disk_full import DiskFull
from benchmarks.campaign.kinds.manifest import Manifest
from benchmarks.campaign.kinds.media import Media
from benchmarks.campaign.kinds.onnx_graph import OnnxGraph
from benchmarks.campaign.kinds.raw_http import RawHttp
from benchmarks.campaign.kinds.signals import Interrupts, Kills
from benchmarks.campaign.kinds.tokenizer import Tokenizer
from benchmarks.campaign.run import Kind


def kinds() -> dict[str, Kind]:
    """New ones, by name."""
    made: list[Kind] = [
        *(Media(), Manifest(), Tokenizer(), BundleFiles(), Checkpoint(), OnnxGraph(), BatchParts()),
        *(Bodies(), RawHttp(), Kills(), Interrupts(), DiskFull(), CppMedia(), CppFuzz()),
    ]
    return {kind.name: kind for kind in made}
