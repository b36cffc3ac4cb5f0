"""Timing on a GPU: CUDA graphs, events, rounds in turns.

A contestant goes through a list of clips, together larger than the L2, and a timed replay goes through that list several times: at
least REPEATS, and for REPLAY_MS or longer, so that launching the graph, some 10 µs, is below 1 % of what is timed.

On a CPU the same calls take a clock instead of events and graphs, so that every script runs there at a tiny size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

REPEATS, REPLAY_MS = 2, 2.0


@dataclass(frozen=True)
class Replay:
    """run: what is timed; passes: how often it goes through all clips."""

    run: Callable[[], Any]
    passes: int


def replay(torch: Any, device: str, once: Callable[[], Any], graph: bool = True) -> Replay:
    """once: goes through all clips. Outputs of a pass are freed before the next, in a graph too, so that memory is bounded.

    graph: False for what can't be captured, and is called as it is.
    """

    def made(passes: int) -> Callable[[], Any]:
        def several() -> Any:
            for _ in range(passes - 1):
                once()
            return once()

        return captured(torch, device, several) if graph else several

    single = made(1)
    single()
    milliseconds = min(_milliseconds(torch, device, single) for _ in range(3))
    del single  # and with it the memory of its outputs
    passes = max(REPEATS, math.ceil(REPLAY_MS / max(milliseconds, 0.01)))
    return Replay(made(passes), passes)


def captured(torch: Any, device: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` as a CUDA graph, so that the time is the GPU's and not Python's; what it made is kept for the graph to write to."""
    if device == "cpu":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # what is still being made on it may lie in memory that `run` will take
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
            milliseconds = _milliseconds(torch, device, contestants[name])
            if number >= 2:
                spent[name].append(milliseconds)
    return spent


def milliseconds_a_pass(torch: Any, device: str, contestants: dict[str, Replay], rounds: int) -> dict[str, list[float]]:
    """The same for one pass through all clips."""
    spent = rounds_in_turns(torch, device, {name: one.run for name, one in contestants.items()}, rounds)
    return {name: [value / contestants[name].passes for value in values] for name, values in spent.items()}


def synchronised(torch: Any, device: str, run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of `run`, the GPU waited for before and after it; and what it returned."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


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
