"""One build of the C++ runtime for all tests, in build/cpp, where the next run finds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cpp_build import BUILD, build
from cpp_libraries import enlarge, unusable_libraries


@pytest.fixture(scope="session")
def cpp() -> Path:
    """The directory of the build: `gridpool`, and `tests/gridpool-probe`, `tests/gridpool-units`, `tests/gridpool-example`."""
    return build(BUILD)


@pytest.fixture(scope="session")
def quadrants() -> np.ndarray:
    """Four colours: RGB uint8 [96, 128, 3]."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[:48, :64, 0] = image[:48, 64:, 1] = image[48:, :64, 2] = image[48:, 64:, 0] = image[48:, 64:, 1] = 220
    return image


@pytest.fixture(scope="session")
def unusable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """{what is wrong: (a library that can't be used, words of the message)}"""
    return unusable_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="session")
def large_bundle(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint's bundle, large enough that both graphs are loaded at the same time. Tests must not change it."""
    return enlarge(bundle_path, tmp_path_factory.mktemp("large") / "bundle")


@pytest.fixture(scope="session")
def half_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in fp16."""
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "llava-ov-fp16"
    export_bundle(ExportOptions(out=str(out), precision="fp16"))
    return out


@pytest.fixture(scope="session")
def quantized_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in int8 and int4."""
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "llava-ov-int8"
    export_bundle(ExportOptions(out=str(out), precision="int8", llm_precision="int4"))
    return out


@pytest.fixture(scope="session")
def frames_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, split, with a graph that takes frames."""
    from export.options import ExportOptions
    from export.pipeline import export_bundle

    out = tmp_path_factory.mktemp("bundles") / "llava-ov-frames"
    export_bundle(ExportOptions(out=str(out), split=True, input="frames"))
    return out
