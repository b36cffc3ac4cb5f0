"""The memory checks on a GPU: what a report of compute-sanitizer means, and planted faults that are seen on stand-ins for CUDA."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from process_ends import assert_ends, wait_until

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_memory_checks
import gpu_programs
from gpu_check_list import CASES, CUDA_CALLS, PASSED_TESTS, Check, planned
from kernel_cases import case_set, write_cases, wrong_cases
from sanitizer_report import LEAK, MISSING, PASSED, PLANTED, TOOLS, WRONG, judged

ROOT = Path(__file__).parents[2]
HEAD = "========= COMPUTE-SANITIZER\n"
CLEAN = HEAD + "36 cases, 2 replays each, 0 of them differ\n========= ERROR SUMMARY: 0 errors\n"
OUT_OF_BOUNDS = (
    HEAD
    + """========= Invalid __global__ write of size 4 bytes
=========     at writes_out_of_bounds(int *)+0x90 in planted_faults.cu:15
=========     by thread (63,0,0) in block (0,0,0)
=========     Saved host backtrace up to driver entry point at kernel launch time
=========
========= ERROR SUMMARY: 1 error
"""
)
RACE = (
    HEAD
    + """========= Error: Race reported between Write access at a+0xc0 in b.cu:19 and Read access at a+0xe0 in b.cu:20 [128 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
)
NOTHING = (
    HEAD
    + "36 cases, 2 replays each, 0 of them differ\n========= Target application terminated before first instrumented API call\n"
)


def verdict(text: str, status: int = 0, tool: str = "memcheck", planted: str = "", proof: str = CASES):
    found = judged(text, status, tool, proof, planted)
    return found.verdict, found.words


def test_a_report_without_errors_passes():
    assert verdict(CLEAN) == (PASSED, "memcheck: 0 errors; 36 cases, 2 replays each, 0 of them differ")
    clean = CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
    assert verdict(clean, tool="racecheck")[0] == PASSED


@pytest.mark.parametrize(
    ("text", "tool", "words"),
    [
        (OUT_OF_BOUNDS, "memcheck", "1 found by memcheck: Invalid __global__ write of size 4 bytes"),
        (RACE, "racecheck", "1 found by racecheck: Error: Race reported between Write access"),
        (CLEAN.replace("0 errors", "3 errors"), "initcheck", "3 found by initcheck"),
        (CLEAN + "========= LEAK SUMMARY: 1048576 bytes leaked in 1 allocations\n", "memcheck", "1048576 found by memcheck"),
    ],
)
def test_a_report_with_errors_is_wrong_even_if_the_program_ended_well(text: str, tool: str, words: str):
    got, seen = verdict(text, tool=tool)
    assert got == WRONG and words in seen


def test_a_sanitizer_that_saw_nothing_does_not_pass():
    assert verdict(NOTHING) == (WRONG, "nothing ran on the GPU under memcheck: 36 cases, 2 replays each, 0 of them differ")
    assert verdict("36 cases, 2 replays each, 0 of them differ\n")[1].startswith("memcheck wrote no summary, exit status 0")
    assert verdict(CLEAN.replace("36 cases", "0 cases")) == (
        WRONG,
        "it did not do all that it should: 0 cases, 2 replays each, 0 of them differ",
    )


def test_kernels_that_a_sanitizer_did_not_see_do_not_pass_where_there_are_some():
    text = NOTHING.replace("API call", "kernel launch")
    assert judged(text, 0, "racecheck", CASES).verdict == WRONG
    assert judged(text, 0, "racecheck", CASES, kernels=False).verdict == PASSED
    assert judged(text, 0, "racecheck", "", planted=PLANTED["racecheck"], kernels=False).verdict == WRONG


def test_tests_that_were_skipped_did_not_do_what_they_should():
    for skipped in ("46 skipped in 1.06s", "1 passed, 45 skipped in 2s", "45 passed, 3 warnings, 1 skipped in 9s"):
        assert verdict(f"{skipped}\n", tool="", proof=PASSED_TESTS) == (WRONG, f"it did not do all that it should: {skipped}")
    for good in ("46 passed in 14.54s", "11 passed, 30 deselected in 4.08s", "46 passed, 2 warnings in 9s"):
        assert verdict(f"{good}\n", tool="", proof=PASSED_TESTS) == (PASSED, good)
    failed = "FAILED tests/a.py::test_b - assert 1\n1 failed, 45 passed in 9s\n"
    assert verdict(failed, 1, "", proof=PASSED_TESTS) == (
        WRONG,
        "exit status 1: FAILED tests/a.py::test_b - assert 1",
    )


REPORTS = {
    "memcheck": (OUT_OF_BOUNDS, "Invalid __global__ write of size 4 bytes"),
    "racecheck": (RACE, "Error: Race reported between Write access"),
    "initcheck": (
        OUT_OF_BOUNDS.replace("Invalid __global__ write", "Uninitialized __global__ memory read"),
        "Uninitialized __global__ memory read of size 4 bytes",
    ),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_planted_fault_must_be_found_in_the_tools_own_words(tool: str):
    text, words = REPORTS[tool]
    got, seen = verdict(text, 9, tool, planted=PLANTED[tool])
    assert got == PASSED and seen.startswith(f"found: {words}")
    assert verdict(CLEAN, tool=tool, planted=PLANTED[tool]) == (WRONG, f"{tool} did not find the planted fault")
    assert verdict(NOTHING, tool=tool, planted=PLANTED[tool])[0] == WRONG
    for other, (different, first) in REPORTS.items():
        if other != tool:
            got, seen = verdict(different, 9, tool, planted=PLANTED[tool])
            assert got == WRONG and seen.startswith(f"{tool} did not find the planted fault, but: {first}")


def test_a_planted_leak_is_not_any_other_fault():
    leak = "Leaked 1,048,576 bytes at 0x7f743aa00000"
    text = (
        f"{HEAD}========= {leak}\n========= LEAK SUMMARY: 1048576 bytes leaked in 1 allocations\n========= ERROR SUMMARY: 1 error\n"
    )
    assert verdict(text, 9, planted=LEAK) == (PASSED, f"found: {leak}")
    assert verdict(OUT_OF_BOUNDS, 9, planted=LEAK)[0] == WRONG


def test_a_missing_sanitizer_is_said_and_no_check_passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(gpu_memory_checks, "sanitizer", lambda: "")
    checks = [check for check in planned("cuda", tmp_path) if check.tool and not check.program]
    report = tmp_path / "checks.json"
    outcomes = gpu_memory_checks.run_all(checks, "cuda", tmp_path, 2, report)
    assert {(one.verdict, one.words) for one in outcomes} == {(MISSING, "no compute-sanitizer on this machine")}
    assert [one["verdict"] for one in json.loads(report.read_text())["checks"]] == [MISSING] * len(checks)


def test_sanitizers_side_by_side_have_ports_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake = tmp_path / "compute-sanitizer"
    fake.write_text('#!/bin/sh\necho "$@"\necho "3 facts, 0 wrong"\necho "========= ERROR SUMMARY: 0 errors"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(gpu_memory_checks, "sanitizer", lambda: str(fake))
    checks = [Check(name, "memcheck", ("true",), 1, CUDA_CALLS) for name in "abc"]
    outcomes = gpu_memory_checks.run_all(checks, "cuda", tmp_path, 3, None)
    assert {one.verdict for one in outcomes} == {PASSED}
    assert len({one.command.split("--port ")[1].split()[0] for one in outcomes}) == 3


def test_a_check_that_fails_stops_no_other(tmp_path: Path):
    python = Check("good", "", (sys.executable, "-c", "print('3 facts, 0 wrong')"), 1, CUDA_CALLS)
    broken = replace(python, name="broken", command=("no-such-program",))
    outcomes = gpu_memory_checks.run_all([broken, python], "cpu", tmp_path, 1, None)
    assert {one.name: one.verdict for one in outcomes} == {"broken": WRONG, "good": PASSED}


def test_a_check_that_hangs_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(Check, "limit", 3)
    child = tmp_path / "child"
    hangs = f"echo begun; sleep 300 & echo $! > {child}; wait"
    (outcome,) = gpu_memory_checks.run_all([Check("hangs", "", ("sh", "-c", hangs), 1, CUDA_CALLS)], "cpu", tmp_path, 1, None)
    assert (outcome.verdict, outcome.words, outcome.log) == (WRONG, "not done after 3 s", "begun\n")
    assert_ends(int(child.read_text()))


def test_a_signal_ends_the_checks_and_removes_the_temporary_folder(tmp_path: Path):
    pid, scratch = tmp_path / "pid", tmp_path / "scratch"
    scratch.mkdir()
    hangs = f"echo $$ > {pid}.part; mv {pid}.part {pid}; sleep 600"
    program = (
        "import sys, gpu_memory_checks as checks\n"
        f"checks.planned = lambda device, work: [checks.Check(name, '', ('sh', '-c', {hangs!r}), 600) for name in 'abc']\n"
        "sys.argv = ['gpu_memory_checks.py', '--device', 'cpu', '--jobs', '1']\n"
        "sys.exit(checks.main())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks"), "TMPDIR": str(scratch)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until(pid.exists)
        assert list(scratch.glob("gpu-checks-*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert_ends(int(pid.read_text()))
    assert not list(scratch.glob("gpu-checks-*"))


def test_a_plan_leaves_no_folder(tmp_path: Path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_memory_checks.py"), "--plan"]
    subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL, check=True)
    assert not list(tmp_path.glob("gpu-checks-*"))


def test_the_kernel_is_built_for_the_gpu_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    commands = []
    monkeypatch.setattr(gpu_programs.processes, "run", lambda words, *_: commands.append(words) or ("", 0))
    gpu_programs.build_kernel_programs("cuda", tmp_path)
    assert "-DCMAKE_CUDA_ARCHITECTURES=native" in commands[0]


def test_tokens_that_are_wrong_or_missing_are_seen(tmp_path: Path):
    cases = case_set("small")[:2]
    right = [case.expected.astype(case.x.dtype) for case in cases]
    file = tmp_path / "tokens"
    for change, words in (
        (lambda: None, ""),
        (lambda: right[1].__setitem__((0, 0, 0, 0), np.nan), "error of nan tolerances"),
        (lambda: right.pop(), "was not written"),
    ):
        change()
        file.write_bytes(b"".join(tokens.tobytes() for tokens in right))
        faults, _ = wrong_cases(cases, file)
        assert len(faults) == bool(words) and all(words in fault for fault in faults), faults


def test_the_plan_names_every_tool_and_a_fault_planted_for_it():
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_memory_checks.py"), "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for tool in TOOLS:
        assert f"| C++ kernel library | {tool} |" in done.stdout
        assert f"| planted fault | {tool} |" in done.stdout


needs_compiler = pytest.mark.skipif(bool(gpu_programs.missing("cpu")), reason=f"needs {gpu_programs.missing('cpu')}")


@needs_compiler
@pytest.mark.slow
def test_memory_that_the_cuda_program_leaks_is_seen_on_a_stand_in(tmp_path: Path):
    program = gpu_programs.build_cuda_program("cpu", tmp_path)
    done = subprocess.run([program, "--leak"], env=gpu_programs.environment("cpu", tmp_path), capture_output=True, text=True)
    assert "18 facts, 0 wrong" in done.stdout
    assert done.returncode and "1048576 byte(s) leaked" in done.stderr


@needs_compiler
@pytest.mark.slow
def test_a_kernel_that_reads_scratch_too_early_is_seen(tmp_path: Path):
    """The pools of the first launch left out: windows then read poison."""
    launcher = tmp_path / "launch_on_cpu.cpp"
    source = (gpu_programs.LIBRARY_TESTS / "launch_on_cpu.cpp").read_text().replace('"../../../', f'"{ROOT}/')
    assert "int number = 0; number" in source
    launcher.write_text(source.replace("int number = 0; number", "int number = 1; number"))
    shutil.copy(gpu_programs.LIBRARY_TESTS / "kernel_on_gpu.cpp", tmp_path)
    folder, cases = tmp_path / "build", case_set("small")[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_programs, "LIBRARY_TESTS", tmp_path)
        program = gpu_programs.build_kernel_programs("cpu", folder)
    write_cases(cases, tmp_path / "cases")
    environment = gpu_programs.environment("cpu", folder)
    subprocess.run([program, tmp_path / "cases", tmp_path / "tokens"], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert wrong_cases(cases, tmp_path / "tokens")[0]
