"""What compression costs: its share of the vision graph, and the module against the authors' algorithm and against a copy.

    python benchmarks/compression_cost.py [--size 0.5b] [--frames 32] [--rounds 3] [--threads 2] [--only module|graph]

The share comes from ONNX Runtime's own profile of one run: seconds in nodes under the scope `compress/` over those of the run.
The module is timed alone at T=32, 27x27 and the hidden size of Qwen2-0.5B, in one process that takes turns between the three.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median

import prepare
from harness import Contestant, arguments, compete, ratio_row, run_python, table, write_section

GRID, HIDDEN = 27, 896
TURNS = 15
SCOPE = "compress/"


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], rounds=3)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--only", choices=["module", "graph"])
    parser.add_argument("--contestant", help="internal: measure in this process; module, or the bundle to profile")
    args = parser.parse_args()
    if args.contestant:
        measured = _time_module(args.frames, args.threads) if args.contestant == "module" else _profile(args)
        print(json.dumps(measured))
        return 0
    for part, measure in (("graph", _graph), ("module", _module)):
        if args.only in (None, part):
            write_section(f"compression-{part}", measure(args))
    return 0


def _graph(args) -> str:
    bundle = prepare.bundle(args.size, args.threads, args.frames, "--only", "vision")
    contestant = Contestant("profile", _command(args, str(bundle)))
    compete([contestant], args.rounds, args.threads)
    share = 100 * median(run.output["compress"] / run.output["all"] for run in contestant.runs)
    rows = [["complete run", contestant.median("all"), 100.0]]
    for name in sorted(contestant.runs[0].output["stages"]):
        seconds = contestant.median("stages", name)
        rows.append([name, seconds, 100 * seconds / contestant.median("all")])
    rows.append([f"compression, {contestant.runs[0].output['nodes']} nodes", contestant.median("compress"), share])
    head = f"Vision graph of size {args.size}, {args.frames} frames, {args.threads} threads, median of {args.rounds} profiled runs."
    targets = table(("", "measured", "target", "met"), [ratio_row("compression, % of the vision run", share, 1.0, larger=False)])
    return f"{head}\n\n{table(('nodes', 'seconds', '%'), rows)}\n\n{targets}"


def _module(args) -> str:
    times = run_python(_command(args, "module"), args.threads).output
    ours = times["ours"]
    rows = [[name, 1000 * seconds, seconds / ours] for name, seconds in times.items() if name != "largest_difference"]
    targets = [
        ratio_row("times faster than the unfold-based algorithm", times["unfold"] / ours, 8),
        ratio_row("time over that of copying the input", ours / times["copy of the input"], 2, larger=False),
    ]
    head = (
        f"`st-gridpool` in torch on float32 [{args.frames}, {GRID}, {GRID}, {HIDDEN}], {args.threads} threads, "
        f"median of {TURNS} turns; the largest difference between both results is {times['largest_difference']:.1e}."
    )
    return f"{head}\n\n{table(('', 'ms', 'times ours'), rows)}\n\n{table(('ratio', 'measured', 'target', 'met'), targets)}"


def _time_module(frames: int, threads: int) -> dict[str, float]:
    """Median seconds of each contender, in turns; and how far apart the two results are."""
    import torch
    from unfold_reference import st_gridpool
    from workload import timed

    from export.compress import make

    torch.set_num_threads(threads)
    x = torch.randn(frames, GRID, GRID, HIDDEN, generator=torch.Generator().manual_seed(0))
    compressor = make("st-gridpool", frames=frames, height=GRID, width=GRID).eval()
    contenders = {"ours": lambda: compressor(x), "unfold": lambda: st_gridpool(x), "copy of the input": lambda: x.clone()}
    with torch.inference_mode():
        difference = float((compressor(x) - st_gridpool(x)).abs().max())
        seconds = {name: [] for name in contenders}
        for turn in range(TURNS + 2):
            for name, run in contenders.items():
                spent, _ = timed(run)
                if turn >= 2:  # the first turns find the allocator and the caches cold
                    seconds[name].append(spent)
    return {name: median(values) for name, values in seconds.items()} | {"largest_difference": difference}


def _profile(args) -> dict:
    """Seconds by node scope of one run of the vision graph, after one unmeasured run."""
    import onnxruntime
    from workload import pixel_values

    bundle = Path(args.contestant)
    manifest = json.loads((bundle / "manifest.json").read_text())
    pixels = pixel_values(manifest["frames"], manifest["preprocessing"]["size"][0])
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = args.threads
    settings.enable_profiling = True
    with tempfile.TemporaryDirectory() as directory:
        settings.profile_file_prefix = f"{directory}/profile"
        session = onnxruntime.InferenceSession(str(_graph_of(bundle)), settings, providers=["CPUExecutionProvider"])
        for _ in range(2):
            session.run(["visual_tokens"], {"pixel_values": pixels})
        events = json.loads(Path(session.end_profiling()).read_text())
    run = max((event for event in events if event.get("name") == "model_run"), key=lambda event: event["ts"])
    # Only nodes of `compress/` are summed: the time of a Loop node holds that of its body's nodes, which are events too.
    stages: dict[str, float] = {}
    nodes = 0
    for event in events:
        name = event.get("name", "").lstrip("/")
        if event.get("cat") == "Node" and event["ts"] >= run["ts"] and name.startswith(SCOPE) and name.endswith("_kernel_time"):
            nodes += 1
            stage = "/".join(name.removesuffix("_kernel_time").split("/")[:2])
            stages[stage] = stages.get(stage, 0.0) + event["dur"] / 1e6
    if not nodes:
        raise SystemExit(f"{bundle} has no node named {SCOPE}…; its graph was written without readable names")
    return {"all": run["dur"] / 1e6, "compress": sum(stages.values()), "nodes": nodes, "stages": stages}


def _graph_of(bundle: Path) -> Path:
    """The vision graph that the runtime takes on a CPU."""
    looped = bundle / "vision.loop.onnx"
    return looped if looped.exists() else bundle / "vision.onnx"


def _command(args, contestant: str) -> list[str]:
    options = ["--frames", str(args.frames), "--threads", str(args.threads), "--contestant", contestant]
    return ["benchmarks/compression_cost.py", *options]


if __name__ == "__main__":
    sys.exit(main())
