"""libFuzzer over the C++ runtime's readers, with address and undefined-behaviour sanitizers; a slice each in turn.

The corpora stay in `DIR/fuzz`, so that a later slice starts from what an earlier one found interesting.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.campaign.kinds.manifest import small_bundle
from benchmarks.campaign.kinds.media import media_files
from benchmarks.campaign.run import Run, log
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.verdicts import ROOT, Fault

BUILD = ROOT / "build" / "cpp-fuzz"
TARGETS = ("manifest", "media", "npy", "question", "tokenizer")
_OPTIONS = ("-timeout=20", "-rss_limit_mb=2048", "-max_len=20000", "-print_final_stats=1")
_CONFIGURE = (
    *("-DCMAKE_CXX_COMPILER=clang++", "-DGRIDPOOL_FUZZ=ON", "-DGRIDPOOL_TESTS=OFF", "-DGRIDPOOL_SANITIZE=address,undefined"),
    "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
)


class CppFuzz:
    name = "cpp-fuzz"
    share = 2.0
    seconds = 20  # of one target at a time

    def lacking(self) -> str | None:
        if not shutil.which("clang++") or not shutil.which("cmake"):
            return "no clang++ or cmake: runtime/cpp/install-packages.sh"
        return None

    def prepare(self, run: Run) -> None:
        log("building the libFuzzer targets")
        for command in (
            ["cmake", "-S", str(ROOT / "runtime" / "cpp"), "-B", str(BUILD), "-G", "Ninja", *_CONFIGURE],
            ["cmake", "--build", str(BUILD), *(word for name in TARGETS for word in ("--target", f"fuzz-{name}"))],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command[:3])} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        bundle, root = small_bundle(run), run.folder / "fuzz"
        valid = {
            "manifest": [bundle / "manifest.json"],
            "media": media_files(run),
            "npy": [bundle / "llm" / "embed_tokens.npy"],
            "question": [],
            "tokenizer": [bundle / "llm" / "tokenizer.json"],
        }
        for name, files in valid.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for file in files:
                shutil.copyfile(file, root / name / file.name)
        shutil.copyfile(bundle / "llm" / "tokenizer.json", root / "tokenizer.json")

    def make(self, run: Run, index: int) -> Case:
        raise SystemExit("libFuzzer's inputs have no index; replay the file of a finding")

    def slice(self, run: Run, until: Callable[[int], bool]) -> None:
        counts = run.counts(self.name)
        while not until(counts["next"]):
            name = TARGETS[counts["next"] % len(TARGETS)]
            done, found = self._fuzz(run, name)
            counts["next"] += 1
            counts["executions"] += done
            counts[name] += done
            for artifact, output in found:
                run.found(self.name, counts["next"], _fault(name, output), Case(artifact.read_bytes(), f".{name}"))
                artifact.unlink()

    def replay(self, run: Run, case: Case) -> Fault | None:
        name = case.suffix.lstrip(".")
        file = run.work(self.name) / "input"
        file.write_bytes(case.data)
        done = _run(run, name, [str(file), *_OPTIONS])
        return _fault(name, done.stderr) if done.returncode else None

    def _fuzz(self, run: Run, name: str) -> tuple[int, list[tuple[Path, str]]]:
        """(executed inputs, artifacts with what was printed)."""
        artifacts = run.work(self.name) / "artifacts"
        artifacts.mkdir(exist_ok=True)
        seed = run.rng(self.name, run.counts(self.name)["next"]).randrange(1, 1 << 31)
        options = [str(run.folder / "fuzz" / name), *_OPTIONS, f"-max_total_time={self.seconds}", f"-seed={seed}"]
        began = time.time()
        done = _run(run, name, [*options, f"-artifact_prefix={artifacts}/"])
        executed = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)
        new = [path for path in artifacts.iterdir() if path.stat().st_mtime >= began - 1]
        return int(executed[1]) if executed else 0, [(path, done.stderr) for path in new]


def _run(run: Run, name: str, words: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1"}
    command = [str(BUILD / "fuzz" / f"fuzz-{name}"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", cwd=run.folder / "fuzz", env=environment, check=False
    )


def _fault(name: str, output: str) -> Fault:
    what = "hang" if "ERROR: libFuzzer: timeout" in output else "memory" if "out-of-memory" in output else "crash"
    frame = re.search(r"#\d+ 0x[0-9a-f]+ in (gridpool::[\w:~]+)", output)
    kind = re.search(r"(?:ERROR: (?:Address|Leak)Sanitizer: |SUMMARY: \w+: |runtime error: )([^\n(]{3,60})", output)
    return Fault(what, f"{kind[1].strip() if kind else 'libFuzzer'} in {frame[1] if frame else f'fuzz-{name}'}", output[-6000:])
