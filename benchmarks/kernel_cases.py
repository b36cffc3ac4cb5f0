"""The kernel library's cases as files: what tests/plugins/library/kernel_on_gpu.cpp reads, and whether what it writes is right.

The cases are those of tests/plugin_cases.py: every block shape in every dtype, and the authors' golden vectors; and clips of the models.

T frames, H, W patch rows and columns, D hidden.
"""

from __future__ import annotations

import functools
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from plugin_cases import BLOCK_CASES, DTYPES, GOLDEN, TOLERANCE, golden_case, random_clip, worst

from plugins.op import StGridPool
from plugins.plan import make_plan
from plugins.reference import st_gridpool

# T, H, W, D. The second has more windows than fill a large GPU at once, so a thread has two vectors of its tokens.
CLIPS = ((32, 27, 27, 896), (64, 27, 27, 896), (16, 27, 27, 3584))


@dataclass(frozen=True)
class KernelCase:
    """x: [T, H, W, D] of `dtype`; expected: [T, H', W', D] in float64, or the authors' float32."""

    name: str
    dtype: str
    spec: StGridPool
    x: np.ndarray
    expected: np.ndarray

    def content(self) -> bytes:
        """As the program reads it."""
        plan = np.asarray(make_plan(self.spec, *self.x.shape[:3]).ints, np.int32)
        head = struct.pack(
            "<5i2f", list(DTYPES).index(self.dtype), 0, 0, self.x.shape[3], len(plan), self.spec.temperature, self.spec.order
        )
        return head + plan.tobytes() + np.ascontiguousarray(self.x).tobytes()


@functools.cache
def case_set(name: str) -> list[KernelCase]:
    """small: every block shape in every dtype; golden: these and the authors' vectors; clips: those of the models, whose launches are
    long enough to overlap."""
    if name == "clips":
        return [_random(StGridPool(), shape, "bfloat16") for shape in CLIPS]
    cases = [_random(spec, shape, dtype) for dtype in DTYPES for spec, shape in BLOCK_CASES]
    return cases + [_golden(path) for path in GOLDEN] if name == "golden" else cases


def write_cases(cases: list[KernelCase], file: Path) -> None:
    file.write_bytes(b"".join(case.content() for case in cases))


def wrong_cases(cases: list[KernelCase], file: Path) -> tuple[list[str], float]:
    """What is wrong with the tokens that the program wrote, a line a case, and the worst error of all in tolerances."""
    content, start, faults, largest = file.read_bytes(), 0, [], 0.0
    for case in cases:
        dtype, count = DTYPES[case.dtype], case.expected.size
        if start + count * dtype.itemsize > len(content):
            return [*faults, f"{case.name}: was not written"], float("inf")
        got = np.frombuffer(content, dtype, count, start).reshape(case.expected.shape)
        start += count * dtype.itemsize
        error = worst(got, case.expected) / TOLERANCE[case.dtype]
        if not error < 1:  # or NaN, as a token that was not written is
            faults.append(f"{case.name}: error of {error:.2g} tolerances")
        largest = max(largest, error if error == error else float("inf"))
    if start != len(content):
        faults.append(f"{len(content) - start} bytes more than the cases have")
    return faults, largest


def _random(spec: StGridPool, shape: tuple[int, ...], dtype: str) -> KernelCase:
    x = random_clip(shape, dtype, 0)
    return KernelCase(f"{dtype} {'x'.join(map(str, shape))} {spec}", dtype, spec, x, st_gridpool(x, spec))


def _golden(path: Path) -> KernelCase:
    """D of the authors' vectors, repeated to a multiple of 8: norms are means over D, so that repeating tokens changes none."""
    spec, x, _, tokens = golden_case(path)
    times = -(-x.shape[-1] // 8) * 8 // x.shape[-1]
    repeated = [np.concatenate([values] * times, axis=-1) for values in (x, tokens)]
    return KernelCase(f"golden {path.stem}", "float32", spec, *repeated)
