"""Fixtures that many tests share: one exported bundle of the shipped checkpoint, the shipped clips, and the CLIs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory):
    """Checks of a bundle's files are remembered per path: tests remember them in a place of their own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint exported with every default. Tests must not change it; copy it first."""
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "llava-ov"
    export_bundle(ExportOptions(out=str(out)))
    return out


@pytest.fixture(scope="session")
def bundle(bundle_path: Path):
    from runtime.bundle import Bundle

    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def split_bundle(tmp_path_factory: pytest.TempPathFactory):
    """The vision encoder of the same, its encoder and compressor as two graphs. Tests must not change it; copy it first."""
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "split"
    return export_bundle(ExportOptions(out=str(out), split=True, only="vision")).bundle


@pytest.fixture(scope="session")
def clip() -> Path:
    """A shipped sample clip."""
    from export.demo import CLIPS

    return sorted(CLIPS.glob("*.mp4"))[0]


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess]:
    """Run `python -m MODULE ARGS…` in a process of its own."""

    def run(module: str, *args: str | Path, **kwargs) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", module, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False, **kwargs)

    return run
