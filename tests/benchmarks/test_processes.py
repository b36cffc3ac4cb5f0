"""benchmarks/processes.py: nothing outlives its time limit, its first process or a signal to the script that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from process_ends import LONG, assert_ends, wait_until

from benchmarks import processes

ROOT = Path(__file__).resolve().parents[2]


def test_what_it_printed_and_how_it_ended():
    assert processes.run([sys.executable, "-c", "print('x'); raise SystemExit(3)"], LONG) == ("x\n", 3)
    assert processes.run(["sh", "-c", "echo begun; sleep 300"], 1.0) == ("begun\n", None)


def test_a_process_whose_parent_is_gone_is_ended_where_the_parent_ended_well_and_at_a_time_limit(tmp_path):
    """At the limit the shell is gone at the SIGTERM, which its child ignores."""
    child = tmp_path / "child"
    deaf = "trap '' TERM; while :; do sleep 0.1; done"
    for script, seconds, expected in (
        (f'sh -c "{deaf}" & echo $! > {child}; exit 0', LONG, 0),
        (f'sh -c "{deaf}" & echo $! > {child}; wait', 3.0, None),
    ):
        assert processes.wait(processes.start(["sh", "-c", script]), seconds, grace=1.0) == expected
        assert_ends(int(child.read_text()))


@pytest.mark.parametrize("during", ["starting", "waiting", "a thread"])
def test_a_signal_leaves_nothing_behind(tmp_path, during):
    """starting: it comes between the start of the process and its registration."""
    pid = tmp_path / "pid"
    planted = {
        "starting": "real = subprocess.Popen\n"
        "def popen(*a, **k):\n    made = real(*a, **k); told(made); os.kill(os.getpid(), 15); time.sleep(0.2); return made\n"
        "subprocess.Popen = popen\nwith processes.none_left(): processes.run(['sleep', '600'], 600)\n",
        "waiting": "with processes.none_left():\n    made = processes.start(['sleep', '600']); told(made)\n"
        "    processes.wait(made, 600)\n",
        "a thread": "def work():\n    made = processes.start(['sleep', '600']); told(made); processes.wait(made, 600)\n"
        "with processes.none_left():\n    thread = threading.Thread(target=work); thread.start(); thread.join()\n",
    }[during]
    part = f"{pid}.part"
    told = f"def told(made):\n    open({part!r}, 'w').write(str(made.pid)); os.replace({part!r}, {str(pid)!r})\n"
    program = f"import os, subprocess, threading, time\nfrom benchmarks import processes\n{told}{planted}print('not ended')\n"
    script = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    try:
        wait_until(pid.exists)
        if during != "starting":
            script.send_signal(signal.SIGTERM)
        printed, _ = script.communicate(timeout=LONG)
        assert (script.returncode, printed) == (128 + signal.SIGTERM, "")
    finally:
        script.kill()
    assert_ends(int(pid.read_text()))


def test_nothing_starts_after_the_end(monkeypatch):
    monkeypatch.setattr(processes, "_closed", False)
    processes.end_all()
    with pytest.raises(RuntimeError, match="everything is being ended"):
        processes.start(["true"])


def test_processes_of_several_threads_are_apart():
    results = {}

    def work(number: int) -> None:
        results[number] = processes.run(["sh", "-c", f"exit {number}"], LONG)[1]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: number for number in range(4)}
