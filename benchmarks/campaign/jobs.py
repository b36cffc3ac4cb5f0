"""Commands that write, each in its own directory, and what must be true of that directory whenever they end.

`begin` lays out what was there before, `words` is the command line, `fault` looks for what is lost, and `complete` for what is
missing once the command has completed. Everything that reads results runs in a child process.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.campaign.corpus import Corpus
from benchmarks.campaign.verdicts import Fault

OUT = "out"  # the name of what a job writes, below its folder


class Job:
    """module and words: the command; `chained`: how often it may be stopped on the same directory before it is let finish."""

    name = ""
    module = "runtime"
    chained = 1

    def begin(self, corpus: Corpus, folder: Path) -> None:
        raise NotImplementedError

    def words(self, corpus: Corpus, folder: Path) -> list[str]:
        raise NotImplementedError

    def fault(self, corpus: Corpus, folder: Path) -> Fault | None:
        raise NotImplementedError

    def complete(self, corpus: Corpus, folder: Path) -> Fault | None:
        return None


class Export(Job):
    """Over an older bundle, or where there is none."""

    module = "export"

    def __init__(self, only: str, over: bool):
        self.name, self.only, self.over = f"export-{only}{'-over' if over else ''}", only, over

    def begin(self, corpus: Corpus, folder: Path) -> None:
        if self.over:
            shutil.copytree(corpus.small, folder / OUT)

    def words(self, corpus: Corpus, folder: Path) -> list[str]:
        words = ["--checkpoint", str(corpus.checkpoint), "--frames", "4", "--only", self.only, "--out", str(folder / OUT)]
        return [*words, "--force"] if self.over else words

    def fault(self, corpus: Corpus, folder: Path) -> Fault | None:
        if not (folder / OUT).exists():
            return Fault("lost", "the older bundle is gone") if self.over else None
        return opens(folder / OUT)

    def complete(self, corpus: Corpus, folder: Path) -> Fault | None:
        manifest = json.loads((folder / OUT / "manifest.json").read_text())
        expected = "vision.onnx" if self.only == "vision" else "llm/decoder.onnx"
        new = expected in manifest["files"] and bool(manifest["llm"]) == (self.only == "llm")
        return None if new else Fault("lost", "exit code 0 and not the new bundle")


class Build(Job):
    """Engines anew, over older ones."""

    name = "build"

    def begin(self, corpus: Corpus, folder: Path) -> None:
        shutil.copytree(corpus.small, folder / OUT)

    def words(self, corpus: Corpus, folder: Path) -> list[str]:
        return ["build", str(folder / OUT), "--force"]

    def fault(self, corpus: Corpus, folder: Path) -> Fault | None:
        for record in (corpus.small / "engines").glob("*/build.json"):  # what was there before
            if not (folder / OUT / "engines" / record.parent.name / record.name).exists():
                return Fault("lost", "the older engines are gone")
        for record in (folder / OUT / "engines").glob("[!.]*/build.json"):
            for graph, entry in json.loads(record.read_text())["graphs"].items():
                engine = record.parent / f"{graph}.engine"
                if not engine.exists() or engine.stat().st_size != entry["size"]:
                    return Fault("lost", "an engine is missing or short", str(engine))
        return opens(folder / OUT)


class Batch(Job):
    """A job of some clips, which resumes where it was stopped."""

    name = "batch"
    chained = 3

    def begin(self, corpus: Corpus, folder: Path) -> None:
        (folder / "videos").mkdir()
        for path in _clips(corpus):
            shutil.copy2(path, folder / "videos" / path.name)

    def words(self, corpus: Corpus, folder: Path) -> list[str]:
        options = ["--out", str(folder / OUT), "--runner", "local", "--part-rows", "2", "--workers", "2", "--threads", "1"]
        return ["batch", str(corpus.small), str(folder / "videos"), *options]

    def fault(self, corpus: Corpus, folder: Path) -> Fault | None:
        paths = [row["path"] for row in rows(folder / OUT)]
        return Fault("lost", "a row is there twice", str(sorted(paths))) if len(set(paths)) < len(paths) else None

    def complete(self, corpus: Corpus, folder: Path) -> Fault | None:
        found = {Path(row["path"]).name: row["digest"] for row in rows(folder / OUT)}
        missing = {path.name for path in _clips(corpus)} - found.keys()
        if missing:
            return Fault("lost", "rows are missing", str(sorted(missing)))
        expected = corpus.folder / "rows.json"
        if not expected.exists():
            expected.write_text(json.dumps(found))
        if json.loads(expected.read_text()) != found:
            return Fault("answer", "rows differ from those of an undisturbed job", f"{found} {expected.read_text()}")
        return None


class Tokens(Job):
    """A file of tokens over an older one."""

    name = "tokens"

    def begin(self, corpus: Corpus, folder: Path) -> None:
        (folder / OUT).write_bytes(b"older")

    def words(self, corpus: Corpus, folder: Path) -> list[str]:
        return ["tokens", str(corpus.small), str(corpus.media / "h264.mp4"), "-o", str(folder / OUT), "--threads", "1"]

    def fault(self, corpus: Corpus, folder: Path) -> Fault | None:
        if (folder / OUT).exists() and (folder / OUT).read_bytes() == b"older":
            return None
        return self.complete(corpus, folder)

    def complete(self, corpus: Corpus, folder: Path) -> Fault | None:
        import numpy as np

        try:
            with np.load(folder / OUT) as values:
                return None if np.isfinite(values["visual_tokens"]).all() else Fault("lost", "tokens that are not finite")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            return Fault("lost", "a file of tokens that can't be read", str(error))


def leftovers(folder: Path) -> list[str]:
    """Temporary names below a job's folder."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob(".*") if ".tmp-" in path.name or ".old-" in path.name
    )


def opens(bundle: Path) -> Fault | None:
    """Whether a bundle opens with every hash as its manifest says."""
    from runtime.bundle import Bundle
    from runtime.core.errors import UserError

    try:
        Bundle.open(bundle, verify=True)
    except UserError as error:
        return Fault("lost", "the bundle does not open", str(error))
    return None


def rows(out: Path) -> list[dict[str, Any]]:
    """The rows of all parts below `out`: path, and a digest of tokens and error."""
    import pyarrow.parquet

    found = []
    for part in sorted(out.glob("part-*.parquet")):
        table = pyarrow.parquet.read_table(part)
        tokens = table.column("tokens").combine_chunks()
        storage = getattr(tokens, "storage", tokens)
        for at, (path, error) in enumerate(zip(table.column("path").to_pylist(), table.column("error").to_pylist(), strict=True)):
            value = storage[at].as_py()
            text = repr(value) if error is None else error.rpartition("(")[0]
            found.append({"path": path, "digest": hashlib.sha256(text.encode()).hexdigest()})
    return found


def _clips(corpus: Corpus) -> list[Path]:
    return sorted(path for path in corpus.media.iterdir() if path.suffix in (".mp4", ".mkv", ".avi", ".gif"))[:9]


def jobs() -> list[Job]:
    return [Export("vision", True), Export("llm", True), Export("vision", False), Export("llm", False), Build(), Batch(), Tokens()]
