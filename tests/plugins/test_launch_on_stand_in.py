"""`plugins.st_gridpool` from end to end without a GPU: real cuda-bindings, a driver that runs the kernel's own entry on the CPU.

Every thread of a block exists there, with shuffles and barriers, so this is where reductions across lanes and warps are proven.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plugin_cases import BLOCK_CASES, DTYPES, TOLERANCE

pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    folder = tmp_path_factory.mktemp("driver")
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-Wl,-soname,libcuda.so.1",
    ]
    subprocess.run([*command, str(HERE / "stand_in_driver.cpp"), "-o", str(folder / "libcuda.so.1"), "-ldl"], check=True)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_go_through_the_driver_and_come_out_right(driver: Path, dtype: str):
    root = HERE.parent.parent
    variables = {
        "LD_LIBRARY_PATH": str(driver),
        "STAND_IN_DTYPE": dtype,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "launch_on_stand_in.py")], env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout)
    assert len(errors) == len(BLOCK_CASES)
    assert all(error < TOLERANCE[dtype] for error in errors), errors
