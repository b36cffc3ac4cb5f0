"""Which checks there are: commands for the CUDA code that needs no TensorRT, each with what proves that it did something.

Those that need no build come first, because the C++ programs are built meanwhile.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kernel_cases import case_set, wrong_cases
from sanitizer_report import LEAK, PLANTED, TOOLS

CUDA_TESTS = "tests/runtime/engine/test_cuda_on_gpu.py"
KERNEL_TESTS = "tests/plugins/test_kernel_on_gpu.py"
# leaks are looked for when the context ends, which a test run leaves to the driver
PYTEST_THEN_RESET = (
    "import sys, pytest; status = pytest.main(sys.argv[1:]); from plugins.driver import Device, call_driver; "
    "call_driver('cuDevicePrimaryCtxReset', Device(0).handle); sys.exit(int(status))"
)
PASSED_TESTS = r"^=*\s*(\d+) passed(?!.*skipped).*"  # a test that was skipped shows nothing
CUDA_CALLS = r"^(\d+) facts, 0 wrong"
CASES = r"^(\d+) cases, \d+ replays each, 0 of them differ"


@dataclass(frozen=True)
class Check:
    """One command. tool: of compute-sanitizer, "" without; seconds: expected on an H100; proof, planted: as for `judged`.

    program: the build whose program is first in the command, "" for Python; cases: the set of kernel_cases.py that it reads;
    kernels: whether it launches kernels itself;
    faults: what else is wrong after a good run.
    """

    name: str
    tool: str
    command: tuple[str, ...]
    seconds: int
    proof: str = ""
    planted: str = ""
    program: str = ""
    cases: str = ""
    options: tuple[str, ...] = ()
    kernels: bool = True
    faults: Callable[[], tuple[list[str], float]] | None = None

    @property
    def title(self) -> str:
        return f"{self.name} ({self.tool})" if self.tool else self.name

    @property
    def limit(self) -> int:
        """Seconds after which it is ended. A step of gpu.py has room for the builds and for all checks, 14 at a time."""
        return 20 + 2 * self.seconds


def planned(device: str, work: Path) -> list[Check]:
    """The checks, those that tell most first. Nothing is built or written yet."""
    if device == "cpu":
        return [
            Check("C++ CUDA calls on a stand-in", "", (), 1, CUDA_CALLS, program="cuda"),
            _kernel_check("C++ kernel library on a stand-in", "", work, 10, cases="small"),
        ]
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
    split = ("-n", "6") if importlib.util.find_spec("xdist") else ()
    leak_check, races = ("--leak-check", "full"), ("--track-stream-ordered-races", "all")
    leaky = (sys.executable, "-c", PYTEST_THEN_RESET, "-q", "-p", "no:cacheprovider", "-m", "gpu", CUDA_TESTS)
    some = (*pytest, KERNEL_TESTS, "-k", "authors or captured or overflow")
    small = (sys.executable, "benchmarks/gpu_plugin.py", "--small")
    return [
        Check("GPU tests of pytest", "", (*pytest, *split, KERNEL_TESTS, CUDA_TESTS), 60, PASSED_TESTS),
        Check("Python CUDA calls", "memcheck", leaky, 10, PASSED_TESTS, options=leak_check, kernels=False),
        Check("Python kernel", "memcheck", some, 40, PASSED_TESTS, options=races),
        Check("C++ CUDA calls", "", (), 2, CUDA_CALLS, program="cuda"),
        Check("C++ CUDA calls", "memcheck", (), 5, CUDA_CALLS, program="cuda", options=leak_check, kernels=False),
        Check("C++ CUDA calls", "initcheck", (), 5, CUDA_CALLS, program="cuda", kernels=False),
        Check("planted leak", "memcheck", ("--leak",), 5, planted=LEAK, program="cuda", options=leak_check, kernels=False),
        _kernel_check("C++ kernel library", "", work, 4, replays=20),
        _kernel_check("C++ kernel library, launches that overlap", "", work, 40, cases="clips", replays=100),
        *(_kernel_check("C++ kernel library", tool, work, 20) for tool in TOOLS),
        *(Check("planted fault", tool, (tool,), 4, planted=PLANTED[tool], program="planted") for tool in TOOLS),
        Check("gpu_plugin.py --small", "memcheck", small, 60),
        Check("gpu_plugin.py --small", "racecheck", small, 60),
    ]


def _kernel_check(name: str, tool: str, work: Path, seconds: int, cases: str = "golden", replays: int = 2) -> Check:
    """A file of cases, the program's tokens in another, and both compared afterwards."""
    tokens = work / f"tokens-{cases}-{tool or 'plain'}"
    # initcheck looks for reads of uninitialized memory, which poison would hide from it
    poison = ["--no-poison"] if tool == "initcheck" else []
    command = (str(cases_file(work, cases)), str(tokens), "--replays", str(replays), *poison)

    def faults() -> tuple[list[str], float]:
        return wrong_cases(case_set(cases), tokens)

    return Check(name, tool, command, seconds, CASES, program="kernel", cases=cases, faults=faults)


def cases_file(work: Path, cases: str) -> Path:
    return work / f"cases-{cases}"
