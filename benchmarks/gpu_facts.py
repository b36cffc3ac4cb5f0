"""The card, its driver, and its two ceilings: bandwidth of a copy, and the rate of a bf16 matrix product.

    python benchmarks/gpu_facts.py [--device cuda|cpu] [--plan] [--json FILE]

Bandwidth counts bytes read and bytes written, for a large copy and for some as large as a clip's features, timed as gpu_plugin.py
times them: captured, through more memory than the caches have, 2 ms or more a replay. The product is of random matrices, since one
of zeros is faster than anything real.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_timing import medians, milliseconds_a_pass, replay, rounds_in_turns
from benchmarks.json_file import write_json

COPIES = {"cuda": (1 << 32, 100 << 20, 25 << 20), "cpu": (1 << 24, 1 << 20)}  # bytes
ROTATED = {"cuda": 1 << 30, "cpu": 1 << 24}  # bytes that a contestant goes through, so that they fit no cache
SIDE = {"cuda": 8192, "cpu": 256}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.plan:
        for size in COPIES[args.device]:
            print(f"copy of {size / 1e6:.0f} MB: {2 * size / 1e6:.0f} MB move, {2 * size / 3e9:.3f} ms at 3 TB/s")
        operations = 2 * SIDE[args.device] ** 3
        print(f"bf16 product of {SIDE[args.device]}^3: {operations / 1e12:.2f} TFLOP, {operations / 750e9:.2f} ms at 750 TFLOP/s")
        return 0
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no NVIDIA GPU here; --device cpu shows that the script runs", file=sys.stderr)
        return 2
    measured = {**_card(torch, args.device), **_ceilings(torch, args.device)}
    write_json(args.json, measured)
    print("\n".join(["|  |  |", "|---|--:|", *(f"| {name} | {value} |" for name, value in measured.items())]))
    return 0


def _card(torch: Any, device: str) -> dict[str, str]:
    versions = {"torch": torch.__version__, "Python": sys.version.split()[0]}
    if device == "cpu":
        return {"card": "none", **versions}
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem", "--format=csv,noheader"]
    driver, sm, memory = driver_and_clocks(subprocess.run(query, capture_output=True, text=True).stdout)
    return {
        "card": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory, GB": f"{properties.total_memory / 1e9:.1f}",
        "multiprocessors": str(properties.multi_processor_count),
        "L2, MB": f"{properties.L2_cache_size / 1e6:.0f}",
        "driver, highest clocks": f"{driver}, {sm}, {memory}",
        "CUDA of torch": str(torch.version.cuda),
        **versions,
    }


def driver_and_clocks(text: str) -> list[str]:
    """Of the first GPU that nvidia-smi lists, a line each: driver, highest clocks of multiprocessors and memory."""
    return [part.strip() for part in text.splitlines()[0].split(",")]


def _ceilings(torch: Any, device: str) -> dict[str, str]:
    found = {}
    for size in COPIES[device]:
        count = max(2, ROTATED[device] // size)
        sources = [torch.randint(256, (size,), dtype=torch.uint8, device=device) for _ in range(count)]
        targets = [torch.empty_like(source) for source in sources]

        def copy(sources: list[Any] = sources, targets: list[Any] = targets) -> None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)

        milliseconds = medians(milliseconds_a_pass(torch, device, {"copy": replay(torch, device, copy)}, 10))["copy"]
        found[f"copy of {size / 1e6:.0f} MB, GB/s"] = f"{2 * size * count / milliseconds / 1e6:.0f}"
    side = SIDE[device]
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    milliseconds = medians(rounds_in_turns(torch, device, {"product": lambda: left @ right}, 10))["product"]
    found[f"bf16 product of {side}^3, TFLOP/s"] = f"{2 * side**3 / milliseconds / 1e9:.1f}"
    return found


if __name__ == "__main__":
    sys.exit(main())
