"""ONNX Runtime's CUDA provider on a real GPU: does it compute what torch computed, what does it leave to the CPU, how fast is it?

    python benchmarks/gpu_onnxruntime.py --demo DIR [--bundle DIR] [--json FILE]      # all parts of these bundles
    python benchmarks/gpu_onnxruntime.py --plan                                       # what the 0.5B bundle must cost, no GPU
    python benchmarks/gpu_onnxruntime.py --make demo|0.5b DIR [--threads 8]           # the bundles, before or beside it
    python benchmarks/gpu_onnxruntime.py --fill DIR OUT                               # a 0.5B bundle in seconds, for times alone
    python benchmarks/gpu_onnxruntime.py --device cpu --demo DIR --bundle TINY --size tiny --rounds 1    # shows that it runs

Parts, each in its own process with a time limit: parity, placement, state (KV cache and binding) and options (CUDA graph and
the provider's switches) on demo bundles; bench, placement-large, race, prefill and options-large on `--bundle`. `--demo` makes
what it lacks. `--wait` is how many seconds to wait for a `--bundle` that is not finished yet. Markdown goes to stdout as it comes,
progress to stderr, all numbers to `--json`; those of the running part are in FILE.parts/ beside it. Exit status 1 where a part
failed, numbers are not what they must be, the GPU can't be used, or a bundle that a part needs is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_onnxruntime_bundles as bundles
import gpu_onnxruntime_filled as filled
import gpu_onnxruntime_plan as plan
import processes
from gpu_onnxruntime_options import options_of
from gpu_onnxruntime_parity import parity_of, placement_of
from gpu_onnxruntime_prefill import prefill_of
from gpu_onnxruntime_report import FAILED, Report, run_apart
from gpu_onnxruntime_speed import bench_of, race_of
from gpu_onnxruntime_state import state_of
from harness import ROOT, log
from random_checkpoint import SIZES

sys.path.insert(0, str(ROOT))

DEMO, LARGE = "demo", "large"
PARTS: dict[str, tuple[str, Callable[[argparse.Namespace, Report], None], float]] = {  # bundles, what runs, seconds at most
    "parity": (DEMO, parity_of, 110),
    "placement": (DEMO, placement_of, 75),
    "state": (DEMO, state_of, 110),
    "options": (DEMO, options_of, 90),
    "bench": (LARGE, bench_of, 60),
    "placement-large": (LARGE, placement_of, 45),
    "race": (LARGE, race_of, 120),
    "prefill": (LARGE, prefill_of, 60),
    "options-large": (LARGE, options_of, 90),
}
# A step of gpu.py has room for the limits of its parts and for making the demo bundles.


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plan", action="store_true", help="print the arithmetic and stop")
    parser.add_argument("--make", nargs=2, metavar=("KIND", "DIR"), help="make bundles and stop: demo, 0.5b, tiny")
    parser.add_argument("--strip", nargs=2, type=Path, metavar=("BUNDLE", "DIR"), help="a bundle without its weights, and stop")
    parser.add_argument(
        "--fill", nargs=2, type=Path, metavar=("DIR", "OUT"), help="what --strip wrote with random weights, and stop"
    )
    parser.add_argument("--demo", type=Path, metavar="DIR", help="demo bundles, made there where they are missing")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle of --size, fp16")
    parser.add_argument("--size", choices=sorted(SIZES), default="0.5b", help="of --bundle and of the plan")
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for --bundle")
    parser.add_argument("--frames", type=int, default=32, help="of the plan and of what --make makes")
    parser.add_argument("--threads", type=int, default=8, help="of what --make makes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache-gb", type=float, default=2.0, help="size of the large KV cache of part state")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), help="default: all of --demo, and all of --bundle, where given")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--bundles", nargs="+", type=Path, default=[], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan:
        print(plan.text(SIZES[args.size], args.frames, args.size))
        if args.json:
            Report(args.json).add("plan", plan.numbers(SIZES[args.size], args.frames))
        return 0
    if args.make:
        kind, directory = args.make
        if kind not in ("demo", *SIZES):
            parser.error(f'--make {kind}: expected "demo" or one of {", ".join(SIZES)}')
        with processes.none_left():
            return bundles.make(kind, Path(directory).resolve(), args.frames, args.threads)
    if args.strip or args.fill:
        (filled.strip if args.strip else filled.fill)(*(args.strip or args.fill))
        return 0
    if args.part:
        report = Report(args.json)
        report.attempt(args.part, lambda: PARTS[args.part][1](args, report))
        return 0 if report.ok else FAILED
    given = {DEMO: args.demo, LARGE: args.bundle}
    args.parts = args.parts or [name for name, (which, *_) in PARTS.items() if given[which]]
    if not args.parts:
        parser.error("expected --demo DIR, --bundle DIR or both")
    with processes.none_left():
        return _run_parts(args)


def _run_parts(args: argparse.Namespace) -> int:
    from runtime.engine.onnx import OnnxEngine

    report = Report(args.json)
    unusable = OnnxEngine.unavailable(args.device)
    if unusable:
        report.failed(f"ONNX Runtime on {args.device}", unusable)
        return 1
    chosen = {DEMO: _demo_bundles(args, report), LARGE: [args.bundle.resolve()] if args.bundle else []}
    options = ["--device", args.device, "--rounds", str(args.rounds), "--size", args.size, "--cache-gb", str(args.cache_gb)]
    with _parts_folder(args.json) as folder:
        for name in args.parts:
            which, _, seconds = PARTS[name]
            if not chosen[which]:
                report.failed(name, f"it needs bundles of {'--demo DIR' if which == DEMO else '--bundle DIR'}")
                continue
            if which == LARGE and not _finished(args):
                report.failed(name, f"{args.bundle} is not there; --make {args.size} makes it")
                continue
            part_json = folder / f"{name}.json"
            command = [str(Path(__file__).resolve()), "--part", name, "--json", str(part_json), *options]
            run_apart(name, [*command, "--bundles", *map(str, chosen[which])], report, part_json, seconds)
    return int(not report.ok)


@contextlib.contextmanager
def _parts_folder(file: Path | None) -> Iterator[Path]:
    """Where parts write: beside the report, so that what one measured is found even if everything is killed. Removed when empty."""
    if file is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    folder = file.with_name(f"{file.name}.parts").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _demo_bundles(args: argparse.Namespace, report: Report) -> list[Path]:
    if args.demo is None or not any(PARTS[name][0] == DEMO for name in args.parts):
        return []
    directory = args.demo.resolve()
    bundles.make("demo", directory, args.frames, args.threads)
    there = [name for name in bundles.DEMO if (directory / name / bundles.MANIFEST).exists()]
    missing = [name for name in bundles.DEMO if name not in there]
    if missing:
        report.failed("demo bundles", f"{', '.join(missing)} could not be made")
    left_out = bundles.CUDA_ALONE if args.device == "cpu" else ()
    if left_out:
        log(f"{', '.join(left_out)} is left out: its decoder runs on CUDA alone")
    return [directory / name for name in there if name not in left_out]


def _finished(args: argparse.Namespace) -> bool:
    """Whether the large bundle is there, or comes within the wait."""
    until = time.monotonic() + args.wait
    while not (args.bundle / bundles.MANIFEST).exists():
        if time.monotonic() >= until:
            return False
        time.sleep(1)
    args.wait = max(0.0, until - time.monotonic())
    return True


if __name__ == "__main__":
    sys.exit(main())
