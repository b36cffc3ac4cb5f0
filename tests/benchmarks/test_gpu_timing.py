"""benchmarks/gpu_timing.py and gpu_facts.py: how often a replay goes through the clips; which line of nvidia-smi counts."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_timing
from benchmarks.gpu_facts import driver_and_clocks


@pytest.mark.parametrize(("milliseconds", "passes"), [(0.5, 4), (0.9, 3), (3.0, 2), (0.0, 200)])
def test_a_replay_lasts_two_milliseconds_and_goes_through_the_clips_twice_at_least(monkeypatch, milliseconds, passes):
    monkeypatch.setattr(gpu_timing, "_milliseconds", lambda *_: milliseconds)
    count = []
    made = gpu_timing.replay(torch, "cpu", lambda: count.append(1))
    assert made.passes == passes
    count.clear()
    made.run()
    assert len(count) == passes


def test_the_time_of_a_pass_is_its_share_of_the_replay(monkeypatch):
    monkeypatch.setattr(gpu_timing, "_milliseconds", lambda *_: 12.0)
    contestants = {"three": gpu_timing.Replay(lambda: None, 3), "four": gpu_timing.Replay(lambda: None, 4)}
    assert gpu_timing.milliseconds_a_pass(torch, "cpu", contestants, 2) == {"three": [4.0, 4.0], "four": [3.0, 3.0]}


def test_outputs_of_a_pass_are_freed_before_the_next():
    alive, most = [0], [0]

    class Output:
        def __init__(self):
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    gpu_timing.replay(torch, "cpu", lambda: [Output() for _ in range(3)]).run()
    assert most[0] == 3


def test_two_gpus_have_a_line_each_and_the_first_counts():
    text = "580.159.04, 1980 MHz, 3201 MHz\n580.159.04, 1755 MHz, 2619 MHz\n"
    assert driver_and_clocks(text) == ["580.159.04", "1980 MHz", "3201 MHz"]
