"""The CUDA kernel on a GPU: right for every dtype, and how near a device copy it comes.

    python benchmarks/gpu_plugin.py                   correctness, then bandwidth, as Markdown
    python benchmarks/gpu_plugin.py --bytes           what must move, and what the kernel reads through the caches; no GPU needed
    compute-sanitizer --tool memcheck  python benchmarks/gpu_plugin.py --small
    compute-sanitizer --tool racecheck python benchmarks/gpu_plugin.py --small

Needs torch with CUDA and `pip install "st-gridpool[plugin]"`. Correctness: fresh random clips, outputs full of NaN before the call,
against the NumPy reference in float64. Speed: CUDA events around replays of a captured graph (ours, torch.compile) or around calls
(eager torch, which can't be captured), median of rounds in turns; inputs rotate through more memory than any L2 holds, the copy's
too. Counted are the bytes that must move whatever is done: tokens that anything depends on, read once, and the output, written once.

T frames, H, W patch rows and columns, D hidden.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plugins import StGridPool, st_gridpool
from plugins.plan import Plan, make_plan
from plugins.reference import st_gridpool as reference
from runtime.errors import UserError

FRAMES, GRID = 32, 27
ROTATED = 1 << 30  # bytes of inputs that one contestant cycles through
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}  # of the largest magnitude
SMALL = [
    (StGridPool(), (16, 9, 9, 64)),
    (StGridPool((4, 2), (1, 2), window=3, order=1, padding=1), (8, 8, 10, 896)),
    (StGridPool((6,), (1,), window=5, order=float("inf"), temperature=4), (12, 11, 10, 40)),
    (StGridPool((), (), window=2, order=3), (3, 7, 5, 2056)),
]
LARGE = [(StGridPool(), (FRAMES, GRID, GRID, 896)), (StGridPool(), (FRAMES, GRID, GRID, 3584))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", action="store_true", help="only count bytes; needs no GPU")
    parser.add_argument("--small", action="store_true", help="only small correctness cases, for compute-sanitizer")
    parser.add_argument("--hidden", type=int, nargs="+", default=[896, 3584])
    parser.add_argument("--dtype", default="bfloat16", choices=list(TOLERANCE))
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if args.bytes:
        return _print_bytes(args.hidden, args.dtype)
    try:
        import torch
    except ImportError:
        print("error: this benchmark needs torch with CUDA: pip install torch", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("error: torch sees no NVIDIA GPU here; --bytes works without one", file=sys.stderr)
        return 2
    try:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
        wrong = _check(torch, SMALL if args.small else SMALL + LARGE[:1])
        if not (args.small or wrong):
            _race(torch, args.hidden, args.dtype, args.rounds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(wrong)


def must_move(plan: Plan, hidden: int, itemsize: int) -> tuple[int, int]:
    """(bytes read, bytes written) that no implementation can do without: sampled frames in full, of others what windows cover."""
    frames, height, width = plan.ints[1:4]
    _, rows, columns = plan.shape
    window, padding = plan.ints[6:8]
    pooled = {version for version, *_ in plan.pools if version < frames}
    shown = {version for pool, _, version, _ in plan.tasks if not pool and version < frames}
    covered = min(rows * window - padding, height) * min(columns * window - padding, width)
    tokens = len(pooled) * height * width + len(shown - pooled) * covered
    return tokens * hidden * itemsize, frames * rows * columns * hidden * itemsize


def _check(torch: Any, cases: list[tuple[StGridPool, tuple[int, ...]]]) -> bool:
    print("| dtype | shape | spec | largest error / largest value | within |\n|---|---|---|---:|---|")
    wrong = False
    for name, tolerance in TOLERANCE.items():
        dtype = getattr(torch, name)
        for spec, shape in cases:
            x = (torch.randn(shape, device="cuda") * torch.rand(*shape[:3], 1, device="cuda") * 3).to(dtype)
            expected = reference(x.double().cpu().numpy(), spec)
            out = torch.full(expected.shape, float("nan"), dtype=dtype, device="cuda")
            st_gridpool(x, spec, out=out)
            error = float(np.abs(out.double().cpu().numpy() - expected).max() / np.abs(expected).max())
            good = error < tolerance  # False for NaN
            wrong |= not good
            print(f"| {name} | {'x'.join(map(str, shape))} | `{spec}` | {error:.1e} | {'yes' if good else 'NO'} |")
    return wrong


def _race(torch: Any, sizes: list[int], name: str, rounds: int) -> None:
    dtype, plan = getattr(torch, name), make_plan(StGridPool(), FRAMES, GRID, GRID)
    print(
        f"\n{name}, T={FRAMES}, {GRID}x{GRID}, `{StGridPool()}`; bytes that must move over the time, as a share of a device copy's\n"
    )
    print("| D | contestant | ms | GB/s | of copy | times ours |\n|---:|---|---:|---:|---:|---:|")
    for hidden in sizes:
        read, written = must_move(plan, hidden, dtype.itemsize)
        clip_bytes = FRAMES * GRID * GRID * hidden * dtype.itemsize
        copied = min(
            (read + written) // 2, clip_bytes
        )  # a copy reads and writes as much as we do, as far as there is a clip to read
        count = max(2, ROTATED // clip_bytes)
        clips = [torch.randn(FRAMES, GRID, GRID, hidden, device="cuda").to(dtype) for _ in range(count)]
        with torch.inference_mode():
            times = _timed(torch, _contestants(torch, clips, copied), rounds)
        speed = {contestant: count * (read + written) / time for contestant, time in times.items()}
        speed["device copy"] = count * 2 * copied / times["device copy"]
        for contestant, time in times.items():
            share = 100 * speed[contestant] / speed["device copy"]
            cells = [f"{time / count:.4f}", f"{speed[contestant] / 1e6:.0f}", f"{share:.0f} %", f"{time / times['plugin']:.1f}"]
            print(f"| {hidden} | {contestant} | {' | '.join(cells)} |")


def _contestants(torch: Any, clips: list[Any], copied: int) -> dict[str, Callable[[], Any]]:
    """Each goes once through all clips."""
    from benchmarks.unfold_reference import st_gridpool as authors
    from export.compress import make

    sources = [clip.view(torch.uint8).flatten()[:copied] for clip in clips]
    targets = [torch.empty_like(source) for source in sources]
    module = make("st-gridpool", frames=FRAMES, height=GRID, width=GRID).cuda().eval()
    compiled = torch.compile(module)
    return {
        "device copy": _captured(torch, lambda: [target.copy_(source) for target, source in zip(targets, sources, strict=True)]),
        "plugin": _captured(torch, lambda: [st_gridpool(clip, StGridPool()) for clip in clips]),
        "torch.compile": _captured(torch, lambda: [compiled(clip) for clip in clips]),
        "torch eager": lambda: [module(clip) for clip in clips],
        "authors' algorithm, eager torch": lambda: [authors(clip) for clip in clips],
    }


def _captured(torch: Any, run: Callable[[], Any]) -> Callable[[], None]:
    """`run` as a CUDA graph, so that the time is the GPU's and not Python's."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, uploads plans
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.results = run()
    return graph.replay


def _timed(torch: Any, contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, in turns; two rounds before do not count."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 2):
        for name, run in contestants.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if number >= 2:
                spent[name].append(start.elapsed_time(end))
    return {name: median(values) for name, values in spent.items()}


def _print_bytes(sizes: list[int], name: str) -> int:
    itemsize = 4 if name == "float32" else 2
    plan = make_plan(StGridPool(), FRAMES, GRID, GRID)
    print(f"{name}, T={FRAMES}, {GRID}x{GRID}, `{StGridPool()}`: {len(plan.launches)} launches\n")
    print("| D | must be read, MB | must be written, MB | scratch, MB |\n|---:|---:|---:|---:|")
    for hidden in sizes:
        read, written = must_move(plan, hidden, itemsize)
        scratch = plan.scratch_tokens * hidden * itemsize
        print(f"| {hidden} | {read / 1e6:.1f} | {written / 1e6:.1f} | {scratch / 1e6:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
