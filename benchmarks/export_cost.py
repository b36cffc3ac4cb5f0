"""What an export costs, and what NVIDIA's TensorRT-RTX builder then makes of its graphs: wall time, peak memory, sizes.

    python benchmarks/export_cost.py [--size 0.5b] [--frames 32] [--threads 2]

The export is the complete command: reading, tracing, passes and verification. The build needs no GPU.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import prepare
from harness import Run, arguments, ratio_row, run_python, table, write_section


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=32)
    args = parser.parse_args()
    bundle, export = prepare.export(args.size, args.threads, args.frames)
    manifest = json.loads((bundle / "manifest.json").read_text())
    written = sum(entry["size"] for entry in manifest["files"].values())
    rows = [["export", export.seconds, export.peak_rss / 1e9, written / 1e9]]
    build, engines = _build(bundle, args.threads)
    rows += [[f"TensorRT-RTX build of {engine['graph']}", engine["seconds"], "", engine["size"] / 1e9] for engine in engines]
    rows.append(
        ["TensorRT-RTX build, complete command", build.seconds, build.peak_rss / 1e9, sum(e["size"] for e in engines) / 1e9]
    )
    targets = [
        ratio_row("export, minutes", export.seconds / 60, 6, larger=False),
        ratio_row("export, peak RSS GB", export.peak_rss / 1e9, 12, larger=False),
    ]
    write_section(
        "export-cost",
        f"Size {args.size}, {args.frames} frames, {args.threads} threads, one run; written bytes in the last column.\n\n"
        f"{table(('', 'seconds', 'peak RSS GB', 'GB written'), rows)}\n\n{table(('', 'measured', 'target', 'met'), targets)}",
    )
    return 0


def _build(bundle: Path, threads: int) -> tuple[Run, list[dict]]:
    """Build both engines anew; their entries of build.json, which is what the runtime goes by."""
    engines = bundle / "engines"
    shutil.rmtree(engines, ignore_errors=True)
    run = run_python(["-m", "runtime", "build", str(bundle), "--backend", "tensorrt-rtx", "--json"], threads)
    (record,) = engines.glob("*/build.json")
    graphs = json.loads(record.read_text())["graphs"]
    return run, [{"graph": graph, **entry} for graph, entry in graphs.items()]


if __name__ == "__main__":
    sys.exit(main())
