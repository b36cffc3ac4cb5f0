"""Which of the kernel's variants a clip needs, its launches and its arguments.

In: a spec, D, a dtype, a plan. Out: `Variant` (template arguments and block shape), the blocks of each launch, `Args`.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace

from plugins.op import StGridPool
from plugins.plan import POOL, WINDOWS, Plan

SCRATCH = -1  # depth: pooled frames are in scratch memory
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
MIN_SHARED = 99 << 10  # bytes of shared memory that a block can have on any GPU of compute capability 8.0 and newer
DECLARED_SHARED = 1024  # at least the bytes of it that a walking kernel declares itself: `kDeclaredShared` of csrc/plan.h
BLOCKS = (32, 64, 96, 128, 224, 256, 384, 512)  # threads of a walk; `kBlocks` of csrc/plan.h
NARROW_BLOCK, FEW_WINDOWS = 128, 64  # `kNarrowBlock` and `kFewWindows` of csrc/plan.h
MAX_VECTORS = 1024  # of a token in a walk: `kMostVectors` of csrc/clip.cuh
STEPS, LATE_STEPS = 4, 3  # of a walk: `kSteps`, `kLateSteps` of csrc/walk.cuh
_MAX_THREADS = {2: 256, 3: 512}  # where tokens of a window stay in registers, by its side


@dataclass(frozen=True)
class Variant:
    """Template arguments, and the block: `threads` per window, `groups` windows.

    window: 2 for a walk, 2 or 3 where tokens stay in registers, else 0. vectors: of 16 bytes, that a thread keeps of each token.
    stages: of a walk (csrc/walk.cuh), whose steps are in shared memory; 0 where the kernel does not walk.
    """

    dtype: str
    squares: bool  # order 2
    depth: int
    window: int
    vectors: int
    threads: int
    groups: int
    stages: int = 0

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory that a launch must request."""
        return self.stages * 6 * self.vectors * self.threads * 16


def variant_for(
    spec: StGridPool, hidden: int, dtype: str, depth: int = SCRATCH, shared: int = MIN_SHARED, few: bool = False
) -> Variant:
    """The variant for D and a dtype; the same choice as `choose` of csrc/plan.h.

    shared: bytes that a block can have on the GPU. few: the clip has too few windows to fill it, see `few_windows`.
    """
    vecs, squares = hidden * BYTES[dtype] // 16, spec.order == 2
    if depth == SCRATCH and spec.window == 2 and vecs <= MAX_VECTORS:
        vectors = 1 if vecs <= (NARROW_BLOCK if few else 32) else 2
        threads = next(block for block in BLOCKS if block >= -(-vecs // vectors))
        twice = Variant(dtype, squares, depth, 2, vectors, threads, 1, stages=2)
        return twice if twice.shared_bytes + DECLARED_SHARED <= shared else replace(twice, stages=1)
    vectors = 1 if spec.window != 2 else 4 if vecs > 256 else 2  # nine tokens of two vectors would not fit the registers
    threads = 32 * -(-vecs // (32 * vectors))
    if threads > _MAX_THREADS.get(spec.window, 0) or (depth == SCRATCH and spec.window == 2):
        return Variant(dtype, squares, depth, window=0, vectors=1, threads=min(32 * -(-vecs // 32), 256), groups=1)
    return Variant(dtype, squares, depth, spec.window, vectors, threads, groups=max(1, 128 // threads))


def few_windows(plan: Plan, multiprocessors: int) -> bool:
    """Whether a clip has so few windows that a GPU is filled only where more threads share a walk."""
    return math.prod(plan.shape) < FEW_WINDOWS * multiprocessors


def resident_blocks(variant: Variant) -> int:
    """How many blocks must fit a multiprocessor, which bounds a thread's registers; `resident_blocks` of csrc/kernels.cuh."""
    return max(1, 65536 // (112 * variant.threads)) if variant.stages else 1


def launches(plan: Plan, variant: Variant) -> tuple[tuple[int, ...], ...]:
    """`Launch` of csrc/clip.cuh and the number of blocks, for each of the plan's launches."""
    first, result = 0, []
    for tasks in plan.launches:
        units = [1, 1]
        for task in tasks:
            late = task[2] >= plan.frames
            units[late] = max(units[late], -(-_units(plan, variant, task) // variant.groups))
        originals = sum(version < plan.frames for _, _, version, _ in tasks)
        blocks = originals * units[0] + (len(tasks) - originals) * units[1]
        result.append((first, originals, *units, blocks))
        first += len(tasks)
    return tuple(result)


def _units(plan: Plan, variant: Variant, task: tuple[int, ...]) -> int:
    """Walks, or windows and cells, of a task."""
    kind, index, version, pool = task
    _, rows, columns = plan.shape
    _, height, width, _ = (0, 0, 0, 0) if kind == WINDOWS else plan.pools[index if kind == POOL else pool]
    half = (-(-plan.ints[2] // 2), -(-plan.ints[3] // 2))
    if not variant.stages or (kind == POOL and ((height, width) != half or plan.ints[6:8] != (2, 0))):
        return (0 if kind == POOL else rows * columns) + height * width
    rows, columns = (rows, columns) if kind == WINDOWS else half
    return rows * -(-columns // (STEPS if version < plan.frames else LATE_STEPS))


_INTS = "frames height width rows columns window padding vecs tasks_at versions_at tiles_at pools_at"
_FLOATS = ("temperature", "order", "inverse_dim")


class Args(ctypes.Structure):
    """`Args` of csrc/st_gridpool.cuh, member by member."""

    _fields_ = tuple((name, ctypes.c_int) for name in _INTS.split()) + tuple((name, ctypes.c_float) for name in _FLOATS)


def args_of(plan: Plan, spec: StGridPool, hidden: int, dtype: str) -> Args:
    sections = [plan.section(name) for name in ("tasks", "versions", "tiles", "pools")]
    vecs = hidden * BYTES[dtype] // 16
    return Args(*plan.ints[1:8], vecs, *sections, spec.temperature, spec.order, 1.0 / hidden)
