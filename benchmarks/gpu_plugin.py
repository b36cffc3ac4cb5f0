"""The CUDA kernel on a GPU: right for every dtype, and how near a device copy it comes.

    python benchmarks/gpu_plugin.py                   correctness, then speed, as Markdown
    python benchmarks/gpu_plugin.py --plan            what must move, and how long that takes at least; needs no GPU
    python benchmarks/gpu_plugin.py --device cpu      the plain algorithms in the kernel's place, to show that the script runs
    compute-sanitizer --tool memcheck  python benchmarks/gpu_plugin.py --small
    compute-sanitizer --tool racecheck python benchmarks/gpu_plugin.py --small

Needs torch with CUDA and `pip install "st-gridpool[plugin]"`. Correctness: the authors' vectors and fresh random clips, outputs
full of NaN before the call, against the NumPy reference in float64. Speed: CUDA events around replays of a captured graph (copy, plugin,
torch.compile) or around calls (eager torch, which can't be captured), median of rounds in turns; inputs rotate through more memory
than any L2 has, the copy's too, and one replay goes through them at least twice and for 2 ms or longer, so that the launch of the
graph is below 1 % of it. Bytes are those that must move in any case: tokens that anything depends on, read once, and the
output, written once.

T frames, H, W patch rows and columns, D hidden.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_timing import Replay, medians, milliseconds_a_pass, replay
from benchmarks.json_file import write_json
from plugins import StGridPool, st_gridpool
from plugins.plan import POOL, Plan, make_plan
from plugins.reference import st_gridpool as reference
from runtime.core.errors import UserError

GRID = 27
CLIPS = [(32, 896), (32, 3584), (128, 896), (128, 3584)]  # T, D
CAPTURED = {"device copy", "plugin", "torch.compile"}  # contestants; the eager ones can't be
ROTATED = 1 << 30  # bytes of inputs that one contestant goes through
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}  # of the largest magnitude
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden"
SMALL = [
    (StGridPool(), (16, 9, 9, 64)),
    (StGridPool((4, 2), (1, 2), window=3, order=1, padding=1), (8, 8, 10, 896)),
    (StGridPool((6,), (1,), window=5, order=float("inf"), temperature=4), (12, 11, 10, 40)),
    (StGridPool((), (), window=2, order=3), (3, 7, 5, 2056)),
]
LARGE = [(StGridPool(), (32, GRID, GRID, 896)), (StGridPool(), (17, GRID, 20, 3584))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--plan", action="store_true", help="only count bytes; needs no GPU")
    parser.add_argument("--json", type=Path, help="all numbers, those of each round too")
    parser.add_argument("--small", action="store_true", help="only small correctness cases, for compute-sanitizer")
    parser.add_argument("--dtype", default="bfloat16", choices=list(TOLERANCE))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bandwidth", type=float, default=3000, help="GB/s of --plan")
    args = parser.parse_args()
    if args.plan:
        return _print_plan(args.dtype, args.bandwidth)
    try:
        import torch
    except ImportError:
        print("error: this benchmark needs torch with CUDA: pip install torch", file=sys.stderr)
        return 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no NVIDIA GPU here; --plan and --device cpu work without one", file=sys.stderr)
        return 2
    data: dict[str, Any] = {"torch": torch.__version__, "card": torch.cuda.get_device_name() if args.device == "cuda" else "none"}
    print(f"{data['card']}, torch {data['torch']}\n")
    try:
        kernel = _kernel if args.device == "cuda" else _in_place_of_the_kernel
        cases = SMALL if args.small or args.device == "cpu" else SMALL + LARGE
        data["checks"] = _golden(torch, args.device, kernel) + _check(torch, args.device, kernel, cases)
        wrong = not all(check["good"] for check in data["checks"])
        write_json(args.json, data)
        if not (args.small or wrong):
            data["speed"] = []
            for frames, hidden in CLIPS if args.device == "cuda" else [(4, 16)]:
                data["speed"].append(_race(torch, args, frames, hidden, kernel))
                write_json(args.json, data)
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
    shown = {version for kind, _, version, _ in plan.tasks if kind != POOL and version < frames}
    covered = min(rows * window - padding, height) * min(columns * window - padding, width)
    tokens = len(pooled) * height * width + len(shown - pooled) * covered
    return tokens * hidden * itemsize, frames * rows * columns * hidden * itemsize


def _kernel(x: Any, spec: StGridPool, out: Any = None) -> Any:
    return st_gridpool(x, spec, out=out)


def _in_place_of_the_kernel(x: Any, spec: StGridPool, out: Any = None) -> Any:
    """On a CPU: the plain graph's module."""
    import torch

    from export.compress import make

    levels = f"ptg:sizes={'/'.join(map(str, spec.sizes))},strides={'/'.join(map(str, spec.strides))}+" if spec.sizes else ""
    pooling = f"nsp:window={spec.window},temperature={spec.temperature:g},order={spec.order:g},padding={spec.padding}"
    module = make(levels + pooling, frames=x.shape[0], height=x.shape[1], width=x.shape[2])
    with torch.inference_mode():
        tokens = module(x)
    return tokens if out is None else out.copy_(tokens.view(out.shape))


def _golden(torch: Any, device: str, kernel: Callable[..., Any]) -> list[dict[str, Any]]:
    """The authors' vectors in float32, as one row; D is repeated to a multiple of 8, which changes no norm, a mean over D."""
    worst = 0.0
    files = sorted(GOLDEN.glob("*.npz"))
    for path in files:
        with np.load(path) as file:
            x, tokens = file["x"], file["tokens"]
            spec = StGridPool(
                tuple(map(int, file["grid_size_list"])),
                tuple(map(int, file["grid_freq_list"])),
                int(file["kernel_size"]),
                float(file["temp"]),
                float(file["p"]),
                int(file["padding"]),
            )
        repeated = np.concatenate([x] * (-(-x.shape[-1] // 8) * 8 // x.shape[-1]), axis=-1)
        got = _poisoned_run(torch, kernel, torch.from_numpy(repeated).to(device), spec, reference(repeated, spec).shape)
        error = np.abs(got[..., : x.shape[-1]].reshape(tokens.shape) - tokens).max() / np.abs(tokens).max()
        worst = max(worst, error) if error == error else float("nan")
        if worst != worst:
            break
    good = bool(files) and bool(worst < TOLERANCE["float32"])
    print("| dtype | shape | spec | largest error / largest value | within |\n|---|---|---|---:|---|")
    print(
        f"| float32 | {len(files)} vectors of the authors' code | various | {worst:.1e} | {'yes' if good else 'NO'} |", flush=True
    )
    return [{"dtype": "float32", "shape": "golden", "spec": "", "error": float(worst), "good": good}]


def _check(
    torch: Any, device: str, kernel: Callable[..., Any], cases: list[tuple[StGridPool, tuple[int, ...]]]
) -> list[dict[str, Any]]:
    checks = []
    for name, tolerance in TOLERANCE.items():
        dtype = getattr(torch, name)
        for spec, shape in cases:
            x = (torch.randn(shape, device=device) * torch.rand(*shape[:3], 1, device=device) * 3).to(dtype)
            expected = _expected(x, spec)
            got = _poisoned_run(torch, kernel, x, spec, expected.shape)
            error = float(np.abs(got - expected).max() / np.abs(expected).max())
            good = bool(error < tolerance)  # False for NaN
            checks.append({"dtype": name, "shape": list(shape), "spec": str(spec), "error": error, "good": good})
            print(f"| {name} | {'x'.join(map(str, shape))} | `{spec}` | {error:.1e} | {'yes' if good else 'NO'} |", flush=True)
    return checks


def _expected(x: Any, spec: StGridPool) -> np.ndarray:
    """In float64 by the NumPy reference; of a large clip, where that takes long, by the authors' algorithm on x's device."""
    if x.numel() < 1 << 22:
        return reference(x.double().cpu().numpy(), spec)
    from benchmarks.unfold_reference import st_gridpool as authors

    tokens = authors(x.double(), spec.sizes, spec.strides, spec.window).cpu().numpy()
    return tokens.reshape(x.shape[0], x.shape[1] // spec.window, -1, x.shape[-1])


def _poisoned_run(torch: Any, kernel: Callable[..., Any], x: Any, spec: StGridPool, shape: tuple[int, ...]) -> np.ndarray:
    """float64 result; what the kernel does not write stays NaN."""
    out = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device)
    kernel(x, spec, out=out)
    return out.double().cpu().numpy()


def _race(torch: Any, args: argparse.Namespace, frames: int, hidden: int, kernel: Callable[..., Any]) -> dict[str, Any]:
    """Speeds of one clip size, as a table, and as numbers."""
    dtype, grid = getattr(torch, args.dtype), GRID if args.device == "cuda" else 8
    plan = make_plan(StGridPool(), frames, grid, grid)
    read, written = must_move(plan, hidden, dtype.itemsize)
    clip_bytes = frames * grid * grid * hidden * dtype.itemsize
    copied = min((read + written) // 2, clip_bytes)  # a copy reads and writes as much as we do, as far as there is a clip to read
    count = max(2, ROTATED // clip_bytes) if args.device == "cuda" else 2
    clips = [torch.randn(frames, grid, grid, hidden, device=args.device).to(dtype) for _ in range(count)]
    with torch.inference_mode():
        contestants, failed = _contestants(torch, args.device, clips, copied, kernel)
        passes = milliseconds_a_pass(torch, args.device, contestants, args.rounds)
    spent = {name: [milliseconds / count for milliseconds in values] for name, values in passes.items()}  # a clip
    times = medians(spent)
    gigabytes = {name: (2 * copied if name == "device copy" else read + written) / ms / 1e6 for name, ms in times.items()}
    print(f"\n{args.dtype}, T={frames}, {grid}x{grid}, D={hidden}, `{StGridPool()}`; {(read + written) / 1e6:.1f} MB must move\n")
    print("| contestant | ms | GB/s | of copy | times the plugin |\n|---|---:|---:|---:|---:|")
    for name, milliseconds in times.items():
        share = 100 * gigabytes[name] / gigabytes["device copy"]
        ratio = milliseconds / times["plugin"]
        print(f"| {name} | {milliseconds:.4f} | {gigabytes[name]:.0f} | {share:.0f} % | {ratio:.1f} |")
    for name, why in failed.items():
        print(f"| {name} | left out: {why} | | | |")
    sys.stdout.flush()
    return {
        "frames": frames,
        "hidden": hidden,
        "grid": grid,
        "dtype": args.dtype,
        "bytes": [read, written],
        "copied": copied,
        "clips": count,
        "passes of a replay": {name: one.passes for name, one in contestants.items()},
        "milliseconds": spent,
        "left out": failed,
    }


def _contestants(
    torch: Any, device: str, clips: list[Any], copied: int, kernel: Callable[..., Any]
) -> tuple[dict[str, Replay], dict[str, str]]:
    """Each as its replay; and those that can't run, with the reason."""
    from benchmarks.unfold_reference import st_gridpool as authors
    from export.compress import make

    sources = [clip.view(torch.uint8).flatten()[:copied] for clip in clips]
    targets = [torch.empty_like(source) for source in sources]
    frames, height, width, _ = clips[0].shape
    module = make("st-gridpool", frames=frames, height=height, width=width).to(device).eval()
    compiled = torch.compile(module, dynamic=False)
    once: dict[str, Callable[[], Any]] = {  # through all clips
        "device copy": lambda: [target.copy_(source) for target, source in zip(targets, sources, strict=True)],
        "plugin": lambda: [kernel(clip, StGridPool()) for clip in clips],
        "torch.compile": lambda: [compiled(clip) for clip in clips],
        "torch eager": lambda: [module(clip) for clip in clips],
        "authors' algorithm, eager torch": lambda: [authors(clip) for clip in clips],
    }
    contestants, failed = {}, {}
    for name, run in once.items():
        try:
            contestants[name] = replay(torch, device, run, graph=name in CAPTURED)
        except Exception as error:  # a compiler's errors have no common base class
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__
    return contestants, failed


def _print_plan(name: str, bandwidth: float) -> int:
    itemsize = 4 if name == "float32" else 2
    print(f"{name}, {GRID}x{GRID}, `{StGridPool()}`; times at {bandwidth:g} GB/s\n")
    print("| T | D | must be read, MB | must be written, MB | scratch, MB | at least, ms |\n|---:|---:|---:|---:|---:|---:|")
    for frames, hidden in CLIPS:
        plan = make_plan(StGridPool(), frames, GRID, GRID)
        read, written = must_move(plan, hidden, itemsize)
        scratch = plan.scratch_tokens * hidden * itemsize
        least = (read + written) / bandwidth / 1e6
        print(f"| {frames} | {hidden} | {read / 1e6:.1f} | {written / 1e6:.1f} | {scratch / 1e6:.1f} | {least:.4f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
