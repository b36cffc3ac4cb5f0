"""The README's examples: the Python one runs, and every command line is one that the CLIs parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import export.__main__
import export.demo.__main__
import runtime.cli.commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "plugins/README.md", "CONTRIBUTING.md", "docs/kubernetes.md")


def _blocks(page: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [body for kind, body in blocks if kind == language]


def _commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for page in PAGES for block in _blocks(page, "") for line in block.splitlines()]
    plain = [line for line in lines if re.match(r"python -m (export|export\.demo|runtime) ", line) and "[" not in line]
    return sorted(set(plain))


def test_the_python_examples_answer(bundle_path, split_bundle, tmp_path, monkeypatch, capsys):
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "llava-ov").symlink_to(bundle_path)
    (tmp_path / "bundles" / "live").symlink_to(split_bundle.path)
    (tmp_path / "export").symlink_to(ROOT / "export")
    monkeypatch.chdir(tmp_path)
    live, ask = _blocks("README.md", "python")
    names = {"camera": np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)}
    exec(compile(ask, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith("cross257 {")
    exec(compile(live, "README.md", "exec"), names)
    assert names["visual"].tokens.shape == (257, 128) and names["visual"].clip.total == 3


@pytest.mark.parametrize("command", _commands())
def test_every_command_line_parses(command):
    _, _, module, *arguments = shlex.split(command)
    parsers = {
        "export": export.__main__._parser,
        "export.demo": export.demo.__main__._parser,
        "runtime": runtime.cli.commands.parser,
    }
    parsers[module]().parse_args(arguments)


def test_there_are_command_lines_to_parse():
    assert len(_commands()) > 12


def test_every_file_that_a_page_names_is_there():
    for page in PAGES:
        text = (ROOT / page).read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / page).parent.joinpath(link).exists() or (ROOT / link).exists(), f"{page}: {link}"
