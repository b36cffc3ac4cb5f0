"""The kernel body, compiled for the CPU with address and undefined-behaviour sanitizers, against the NumPy reference.

Every byte of scratch and output starts as NaN, so that a token that is not written, or read before it is written, shows.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_cases import DTYPES, GOLDEN, TOLERANCE, golden_case, random_clip, specs_and_shapes, worst

from plugins.op import StGridPool, output_shape
from plugins.plan import BOTH, HEADER, POOL, WINDOWS, Plan, in_one_launch, make_plan
from plugins.reference import st_gridpool

Run = Callable[..., np.ndarray]
WAYS = {"chosen": 0, "generic": 1, "on the fly": 2}
_SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="session")
def host_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    binary = tmp_path_factory.mktemp("host") / "kernel"
    source = Path(__file__).with_name("host_kernel.cpp")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["g++", "-std=c++17", "-O0", *warnings, *_SANITIZERS, str(source), "-o", str(binary)], check=True)
    return binary


@pytest.fixture(scope="session")
def run(host_kernel: Path) -> Run:
    def on_host(
        x: np.ndarray, spec: StGridPool, way: str = "chosen", threads: int = 0, ints: list[int] | None = None
    ) -> np.ndarray:
        dtype, hidden = x.dtype, x.shape[-1]
        plan = make_plan(spec, *x.shape[:3])
        plan = ints or (in_one_launch(plan) if way == "on the fly" else plan).ints
        number = [name for name, known in DTYPES.items() if known == dtype]
        head = [list(DTYPES).index(number[0]), WAYS[way], threads, hidden, len(plan)]
        data = np.array(head, np.int32).tobytes() + np.array([spec.temperature, spec.order], np.float32).tobytes()
        done = subprocess.run([host_kernel], input=data + np.array(plan, np.int32).tobytes() + x.tobytes(), capture_output=True)
        if done.returncode == 2:
            raise ValueError(done.stderr.decode().strip())
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return np.frombuffer(done.stdout, dtype).reshape(output_shape(spec, x.shape))

    return on_host


@settings(max_examples=60, deadline=None)
@given(case=specs_and_shapes(), dtype=st.sampled_from(list(DTYPES)), way=st.sampled_from(list(WAYS)), seed=st.integers(0, 2**16))
def test_any_spec_on_any_grid_matches_the_reference(
    run: Run, case: tuple[StGridPool, tuple[int, int, int, int]], dtype: str, way: str, seed: int
):
    spec, shape = case
    x = random_clip(shape, dtype, seed)
    assert worst(run(x, spec, way), st_gridpool(x, spec)) < TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(3, 9), st.integers(3, 40)),
    sizes=st.sampled_from([(4,), (4, 4), (1, 4, 4), (4, 6), (2, 4)]),
    hidden=st.sampled_from([8, 272, 520]),
    dtype=st.sampled_from(list(DTYPES)),
    order=st.sampled_from([2.0, 3.0]),
    seed=st.integers(0, 2**16),
)
def test_walks_of_any_length_match_the_reference(run: Run, grid, sizes, hidden: int, dtype: str, order: float, seed: int):
    """Odd and even sides, several walks a row, and pooled frames that are made on the way beside some that are not."""
    spec = StGridPool(sizes, (1, 2, 2)[: len(sizes)], order=order, temperature=5)
    x = random_clip((9, *grid, hidden), dtype, seed)
    assert worst(run(x, spec), st_gridpool(x, spec)) < TOLERANCE[dtype]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("way", WAYS)
def test_the_authors_vectors_come_out(run: Run, path: Path, way: str):
    spec, x, _, tokens = golden_case(path)
    hidden = -(-x.shape[-1] // 8) * 8
    repeated = np.concatenate([x] * (hidden // x.shape[-1]), axis=-1)  # norms are means over D: repeating tokens changes none
    got = run(repeated, spec, way)
    assert worst(got[..., : x.shape[-1]], tokens) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("window", "hidden"), [(2, 8), (2, 840), (2, 2056), (2, 3584), (2, 8192), (2, 9216), (3, 1032), (3, 4104), (4, 3584)]
)
def test_every_block_shape_that_is_chosen(run: Run, dtype: str, window: int, hidden: int):
    """Idle lanes, one and two vectors a thread, one and two stages, several windows a block, and D too large for a walk or registers."""
    spec = StGridPool((4,), (1,), window=window)
    x = random_clip((4, 5, 4, hidden), dtype, 3)
    assert worst(run(x, spec), st_gridpool(x, spec)) < TOLERANCE[dtype]


def test_half_precision_conversions_are_exact_for_every_value(run: Run):
    """Window 1 is a copy: every float16 and bfloat16 that is not NaN must come back, bit for bit."""
    for dtype in ("float16", "bfloat16"):
        bits = np.arange(1 << 16, dtype=np.uint16)
        values = bits.view(DTYPES[dtype])
        values = np.where(np.isfinite(values.astype(np.float32)), values, np.ones_like(values))
        x = values.reshape(1, 4, 4, 1 << 12)
        spec = StGridPool((), (), window=1, temperature=0.0, order=math.inf)
        assert np.array_equal(run(x, spec).view(np.uint16), x.view(np.uint16) * (x != 0))  # -0 * weight + 0 is 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_results_are_rounded_to_the_nearest_half_precision_number(run: Run, dtype: str):
    """Plain means of four tokens, all exponents, subnormals and overflow among them: NumPy's rounding, bit for bit."""
    bits = np.random.default_rng(0).integers(0, 1 << 16, (1, 16, 16, 256), dtype=np.uint16)
    x = bits.view(DTYPES[dtype])
    x = np.where(np.isfinite(x.astype(np.float32)), x, np.ones_like(x))
    x[:, 1::2] = x[:, ::2]  # close to one another, so that ties and carries occur
    tokens = x.astype(np.float32).reshape(1, 8, 2, 8, 2, 256)
    with np.errstate(over="ignore"):
        mean = sum(tokens[:, :, i, :, j] * np.float32(0.25) for i in range(2) for j in range(2))
        expected = (mean + np.float32(0)).astype(DTYPES[dtype])
    got = run(x, StGridPool((), (), window=2, temperature=0.0, order=math.inf))
    assert np.array_equal(got.view(np.uint16), expected.view(np.uint16))


def test_float16_norms_that_overflow_float16_stay_finite(run: Run):
    spec = StGridPool((), (), window=2)
    x = random_clip((1, 4, 4, 512), "float16", 1, scale=2000)
    got = run(x, spec)
    assert np.isfinite(got.astype(np.float32)).all()
    assert worst(got, st_gridpool(x, spec)) < TOLERANCE["float16"]


def test_not_a_number_stays_one(run: Run):
    for order in (2.0, math.inf):
        spec = StGridPool((), (), window=2, order=order)
        x = random_clip((1, 4, 4, 8), "float32", 1)
        x[0, 1, 0, 3] = np.nan
        got = run(x, spec)
        assert np.isnan(got[0, 0, 0]).all()
        assert np.isfinite(got[0, 1]).all()


def test_a_plan_with_an_index_out_of_range_is_refused(run: Run):
    spec, shape = StGridPool((4, 4), (1, 2)), (8, 6, 6, 8)
    x = random_clip(shape, "float32", 0)
    good = list(make_plan(spec, *shape[:3]).ints)
    assert worst(run(x, spec, ints=good), st_gridpool(x, spec)) < TOLERANCE["float32"]
    tasks = HEADER + good[8] + 1
    for position in [
        0,
        4,
        8,
        9,
        10,
        13,
        HEADER,
        tasks,
        tasks + 1,
        tasks + 2,
        tasks + 3,
        tasks + 4 * good[9] + 3,
        len(good) - 1,
        len(good) - 3,
    ]:
        for value in (-1, 10**6):
            bad = list(good)
            bad[position] = value
            with pytest.raises(ValueError, match="plan"):
                run(x, spec, ints=bad)
    with pytest.raises(ValueError, match="length"):
        run(x, spec, ints=good[:-1])


def test_a_plan_whose_launches_are_out_of_order_is_refused(run: Run):
    spec, shape = StGridPool((4, 4), (1, 2)), (8, 6, 6, 8)
    x = random_clip(shape, "float32", 0)
    good = list(make_plan(spec, *shape[:3]).ints)
    launches, count = good[8], good[9]
    assert launches > 1
    at_once = [*good[:8], 1, *good[9:HEADER], 0, count, *good[HEADER + launches + 1 :]]
    with pytest.raises(ValueError, match="reads what no earlier one pooled"):
        run(x, spec, ints=at_once)
    tasks = HEADER + launches + 1
    pool = next(at for at in range(tasks, tasks + 4 * count, 4) if good[at])
    other = list(good)
    other[pool + 2] = (good[pool + 2] + 1) % shape[0]
    with pytest.raises(ValueError, match="another version than it pools"):
        run(x, spec, ints=other)


def _with_tasks(plan: Plan, launches: list[list[tuple[int, ...]]], **header: int) -> list[int]:
    ints = list(plan.ints)
    rest = ints[plan.section("versions") :]
    ints[0] = header.get("format", ints[0])
    ints[8:10] = [len(launches), sum(map(len, launches))]
    firsts = [sum(map(len, launches[:number])) for number in range(len(launches) + 1)]
    return [*ints[:HEADER], *firsts, *(value for launch in launches for task in launch for value in task), *rest]


def test_a_plan_of_the_format_before_runs(run: Run):
    """There windows and pooled frames were always tasks of their own."""
    spec, shape = StGridPool((4, 4), (1, 2)), (8, 7, 18, 8)
    x, plan = random_clip(shape, "float32", 0), make_plan(spec, *shape[:3])
    launches: list[list[tuple[int, ...]]] = []
    for tasks in plan.launches:
        launches.append([])
        for kind, index, version, pool in tasks:
            launches[-1] += (
                [(POOL, pool, version, 0), (WINDOWS, index, version, 0)] if kind == BOTH else [(kind, index, version, 0)]
            )
    assert sum(map(len, launches)) > len(plan.tasks)
    assert worst(run(x, spec, ints=_with_tasks(plan, launches, format=1)), st_gridpool(x, spec)) < TOLERANCE["float32"]
    with pytest.raises(ValueError, match="another format"):
        run(x, spec, ints=_with_tasks(plan, launches, format=0))
    with pytest.raises(ValueError, match="another format"):
        run(x, spec, ints=_with_tasks(plan, launches, format=3))


def test_a_task_that_pools_on_the_way_to_another_size_is_refused(run: Run):
    spec, shape = StGridPool((6,), (1,)), (6, 6, 8, 8)
    plan = make_plan(spec, *shape[:3])
    (pools, summary) = plan.launches
    joined = [(BOTH, 0, 0, 0), *(task for task in pools if task[2] != 0)]
    with pytest.raises(ValueError, match="pools to a size that no walk makes"):
        run(random_clip(shape, "float32", 0), spec, ints=_with_tasks(plan, [joined, summary]))


def test_a_launch_with_a_summary_before_an_original_frame_is_refused(run: Run):
    spec, shape = StGridPool((4,), (2,)), (8, 4, 4, 8)
    plan = make_plan(spec, *shape[:3])
    first, second = plan.launches
    assert second[0][2] < 8 <= second[-1][2]
    with pytest.raises(ValueError, match="has summaries first"):
        run(random_clip(shape, "float32", 0), spec, ints=_with_tasks(plan, [first, second[::-1]]))
