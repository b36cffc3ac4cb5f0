"""The checkpoints and bundles that the benchmarks run on, made once and kept under build/benchmarks.

A bundle's directory carries a digest of the exporting sources and of the options: change either and it is exported anew, and the
bundles of older sources are removed. Light on imports, as harness.py asks.
"""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path

from harness import ROOT, Run, log, run_python

WORK = ROOT / "build" / "benchmarks"
_DIGITS = 10  # of a digest in a name
_SOURCES = ("export", "plugins", "runtime/bundle", "benchmarks/random_checkpoint.py", "benchmarks/random_tokenizer.py")


def checkpoint(size: str, threads: int) -> Path:
    """A random checkpoint of `size`."""
    path = WORK / f"checkpoint-{size}-{_digest(_SOURCES[-2:])}"
    if not (path / "complete").exists():
        _remove(f"checkpoint-{size}")
        log(f"writing a random {size} checkpoint")
        run_python(["benchmarks/random_checkpoint.py", "--size", size, "--out", str(path)], threads)
        (path / "complete").touch()
    return path


def bundle(size: str, threads: int, frames: int, *options: str) -> Path:
    """A bundle of the random checkpoint of `size`; options: of `python -m export`, e.g. "--only", "vision"."""
    path = _bundle_path(size, frames, options)
    if not (path / "manifest.json").exists():
        export(size, threads, frames, *options)
    return path


def export(size: str, threads: int, frames: int, *options: str) -> tuple[Path, Run]:
    """Export anew whatever is there; (the bundle, what the export cost)."""
    path = _bundle_path(size, frames, options)
    source = checkpoint(size, threads)
    _remove(f"bundle-{_slug(size, frames, options)}")
    log(f"exporting {size} with {frames} frames {' '.join(options)}")
    command = ["-m", "export", "--model", "llava-ov", "--checkpoint", str(source), "--frames", str(frames), "--out", str(path)]
    run = run_python([*command, *options, "--json"], threads)
    return path, run


def _bundle_path(size: str, frames: int, options: tuple[str, ...]) -> Path:
    return WORK / f"bundle-{_slug(size, frames, options)}-{_digest(_SOURCES)}"


def _slug(size: str, frames: int, options: tuple[str, ...]) -> str:
    return "-".join([size, f"T{frames}", *(option.lstrip("-") for option in options)])


def _digest(sources: tuple[str, ...]) -> str:
    digest = sha256()
    for source in sources:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _remove(name: str) -> None:
    """What was made of older sources under this name, and nothing whose longer name begins with it."""
    for path in WORK.glob(f"{name}-{'?' * _DIGITS}"):
        shutil.rmtree(path)
