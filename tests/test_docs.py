"""README, the pages in docs/ and the other Markdown files: commands parse and run, Python examples answer, links and the diagram are right."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import export.__main__
import export.demo.__main__
import runtime.cli.commands

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
RESULTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("*.md"))
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "plugins/README.md",
    "runtime/cpp/README.md",
    "export/demo/checkpoint/README.md",
    *DOCS,
    *RESULTS,
)
PARSERS = {
    "export": export.__main__._parser,
    "export.demo": export.demo.__main__._parser,
    "runtime": runtime.cli.commands.parser,
}
# Programs of others, whose command lines nothing here can check.
FOREIGN = ("vllm serve ", "cd bundles/", "source .venv/bin/activate")


def _blocks(page: str, *languages: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [body for kind, body in blocks if kind in languages]


def _commands(page: str, *languages: str) -> list[str]:
    """Commands of the blocks, without comments; in a block with prompts, what stands behind a prompt."""
    found = []
    for block in _blocks(page, *languages):
        lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found += [part for line in prompted or lines if line and not line.startswith("#") for part in line.split(" && ")]
    return found


ALL = sorted({command for page in PAGES for command in _commands(page, "sh")} | set(_commands("README.md", "")))
OURS = [command for command in ALL if re.match(r"(python -m (export|export\.demo|runtime)|build/cpp/gridpool) ", command)]
# Those of the demo checkpoint that any machine can run, in the order of the pages.
RUNNABLE = [
    command
    for page in ("quickstart", "export", "compression", "quantization", "live", "running")
    for command in _commands(f"docs/{page}.md", "sh")
    if re.match(r"python -m (export|runtime) |polygraphy ", command) and not re.search(r"[A-Z]{4}|rtsp:|llava-hf/", command)
]


def test_there_are_commands_to_check():
    assert len(OURS) > 30 and len(RUNNABLE) > 12


@pytest.mark.parametrize("command", OURS)
def test_every_command_line_of_ours_parses(command):
    words = shlex.split(command.replace("build/cpp/gridpool", "python -m runtime"))
    PARSERS[words[2]]().parse_args(words[3:])


def test_every_other_command_names_what_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for command in ALL:
        words = shlex.split(command)
        if command in OURS or command.startswith(FOREIGN):
            continue
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command
        elif words[0] == "python":
            script = ROOT / words[1]
            sources = "".join(
                one.read_text() for one in [script, *script.with_suffix("").rglob("*.py"), ROOT / "benchmarks/harness.py"]
            )
            assert all(f'"{word}"' in sources for word in words[2:] if word.startswith("--")), command
        elif words[:2] == ["pip", "install"]:
            assert words[2].startswith(".["), f"{command}: what the extras bring is checked in test_extras.py"
        elif words[:2] == ["cmake", "-S"]:
            assert (ROOT / words[2] / "CMakeLists.txt").is_file(), command
        elif words[:2] == ["serve", "run"]:
            import runtime.cluster.app

            assert words[2] == "runtime.cluster.app:build" and callable(runtime.cluster.app.build)
        else:
            assert words[:2] in (["cmake", "--build"], ["cmake", "--install"]) or words[0] == "polygraphy", (
                f"nothing checks: {command}"
            )


def _checkout(folder: Path, **bundles: Path) -> Path:
    """A directory from which the paths of the pages work."""
    (folder / "bundles").mkdir()
    for name, path in bundles.items():
        (folder / "bundles" / name.replace("_", "-")).symlink_to(path)
    (folder / "export").symlink_to(ROOT / "export")
    (folder / "clips").symlink_to(ROOT / "export" / "demo" / "clips")
    return folder


@pytest.mark.slow
def test_the_commands_of_the_demo_checkpoint_run(tmp_path):
    _checkout(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in RUNNABLE:
        folder = tmp_path / "bundles" / "llava-ov" if command.startswith("polygraphy") else tmp_path
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
        if " run " in command:
            assert done.stdout.strip().splitlines()[0] == "cross" or command.startswith("polygraphy"), command


def test_the_python_example_of_the_quickstart_answers(bundle_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(_checkout(tmp_path, llava_ov=bundle_path))
    (ask,) = _blocks("docs/quickstart.md", "python")
    exec(compile(ask, "docs/quickstart.md", "exec"), {})
    assert capsys.readouterr().out.startswith("cross257 {")


def test_the_live_example_encodes_a_stream(split_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(_checkout(tmp_path, live=split_bundle.path))
    (live,) = _blocks("docs/live.md", "python")
    names = {"camera": np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)}
    exec(compile(live, "docs/live.md", "exec"), names)
    assert names["visual"].tokens.shape == (257, 128) and names["visual"].clip.total == 3


def test_the_architecture_page_quotes_the_sources():
    (line,) = _blocks("docs/architecture.md", "python")
    assert line in (ROOT / "runtime/server/options.py").read_text().replace("    ", "")


def test_every_file_that_a_page_links_to_is_there():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_site_builds_without_a_warning(tmp_path):
    """Links, anchors, the names of the API reference, and the diagram against the sources."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VideoChat" in (tmp_path / "site" / "api.html").read_text()
    assert (tmp_path / "site" / "results" / "accuracy.png").is_file()
