"""Timing on a GPU: CUDA graphs, events, rounds in turns; and the memory that must not be timed, a warm L2.

On a CPU the same calls take a clock instead of events and graphs, so that every script runs there at a tiny size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def captured(torch: Any, device: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` as a CUDA graph, so that the time is the GPU's and not Python's; what it made is kept for the graph to write to."""
    if device == "cpu":
        return run
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, uploads tables
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.results = run()
    return graph.replay


def rounds_in_turns(torch: Any, device: str, contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contestant in each round, every second round in reverse; two rounds before do not count."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 2):
        names = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        for name in names:
            taken = _milliseconds(torch, device, contestants[name])
            if number >= 2:
                spent[name].append(taken)
    return spent


def medians(spent: dict[str, list[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in spent.items()}


def _milliseconds(torch: Any, device: str, run: Callable[[], Any]) -> float:
    if device == "cpu":
        start = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
