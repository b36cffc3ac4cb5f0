"""What the benchmarks rest on: sections of the pages in results/, peak memory of a child, the yardstick algorithm, the prefill prediction."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_a_section_is_replaced_and_the_others_stay(tmp_path, monkeypatch, capsys):
    import harness

    results = tmp_path / "page.md"
    results.write_text("# Title\n<!-- begin a -->\nold\n<!-- end a -->\nbetween\n<!-- begin b -->\nkept\n<!-- end b -->\n")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "frames.py"), "--size", "tiny"])
    harness.write_section("a", r"new \1 text")
    text = results.read_text()
    assert "old" not in text
    assert r"new \1 text" in text
    assert text.endswith("<!-- end a -->\nbetween\n<!-- begin b -->\nkept\n<!-- end b -->\n")
    assert "python benchmarks/frames.py --size tiny" in text
    with pytest.raises(SystemExit, match="'c'"):
        harness.write_section("c", "belongs nowhere")
    assert results.read_text() == text


SECTIONS = (
    *("speed", "speed-tiny", "frames", "prefill-chunks", "roofline", "compression-graph", "compression-module", "export-cost"),
    *("accuracy", "accuracy-ablations", "accuracy-quantized", "loud-channels", "seek", "media"),
    *("server-batch", "server-load", "server-wire", "vllm", "cpp-runtime", "mutations", "campaign"),
)


def test_every_section_that_a_script_writes_has_its_markers_on_one_page():
    text = "".join(page.read_text() for page in (ROOT / "benchmarks" / "results").glob("*.md"))
    assert sorted(re.findall(r"<!-- begin (\S+) -->", text)) == sorted(SECTIONS)
    assert sorted(re.findall(r"<!-- end (\S+) -->", text)) == sorted(SECTIONS)


def test_every_section_names_command_machine_and_commit():
    for page in (ROOT / "benchmarks" / "results").glob("*.md"):
        for body in re.findall(r"<!-- begin \S+ -->\n(.*?)<!-- end", page.read_text(), flags=re.DOTALL):
            assert re.match(r"```\npython benchmarks/.*\n```\n.*cores.* · \d{4}-\d\d-\d\d · commit [0-9a-f]{7}", body), page


def test_a_run_reports_the_peak_memory_of_the_child_alone():
    import harness

    # Runs from a light process, as the scripts are: a child's peak starts at its parent's.
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import harness, json;"
        "small = harness.run_python(['-c', 'print(1)'], 1);"
        "large = harness.run_python(['-c', 'x = bytes(300_000_000); y = bytearray(x); print(1)'], 1);"
        "print(json.dumps([small.peak_rss, large.peak_rss]))"
    )
    small, large = harness.run_python(["-c", code], 1).output
    assert small < 60e6
    assert 280e6 < large - small < 650e6


def test_rounds_alternate_in_direction(monkeypatch):
    import harness

    order = []
    monkeypatch.setattr(harness, "run_python", lambda command, threads: order.append(command[0]) or harness.Run({"n": [1]}, 1.0, 2))
    contestants = [harness.Contestant(name, [name]) for name in "abc"]
    harness.compete(contestants, rounds=2, threads=1)
    assert order == ["a", "b", "c", "c", "b", "a"]
    assert contestants[0].median("n", 0) == 1
    assert contestants[0].median("peak_rss") == 2


@pytest.mark.parametrize("name", ["paper_default_T32_9x9", "odd_T13_6x6", "short_clip_T8_8x8"])
def test_the_yardstick_computes_what_the_authors_code_computes(name):
    from unfold_reference import st_gridpool

    golden = np.load(GOLDEN / f"{name}.npz", allow_pickle=True)
    x = torch.from_numpy(golden["x"])
    tokens = st_gridpool(
        x, tuple(golden["grid_size_list"].tolist()), tuple(golden["grid_freq_list"].tolist()), int(golden["kernel_size"])
    )
    expected = golden["tokens"].reshape(-1, x.shape[-1])
    np.testing.assert_allclose(tokens.numpy(), expected, rtol=2e-6, atol=2e-6)


def test_prefill_is_predicted_by_counting():
    from frames import CHUNK, prefill_multiply_adds
    from random_checkpoint import Tower

    from runtime.llm.decoder import PREFILL_CHUNK

    assert CHUNK == PREFILL_CHUNK
    llm, positions = Tower(width=8, layers=3, heads=2, kv_heads=1, mlp=16), CHUNK + 10
    per_position = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k, v, o, gate and up and down
    attention = CHUNK * CHUNK * 8 * 2 + 10 * (CHUNK + 10) * 8 * 2
    assert prefill_multiply_adds(llm, positions) == 3 * (positions * per_position + attention)


@pytest.mark.parametrize(("preset", "length"), [("st-gridpool", "compressed"), ("st-gridpool-8x", "eighth"), ("llava-ov", "own")])
@pytest.mark.parametrize("side", [9, 27])
def test_prompts_are_as_long_as_a_clips_tokens(preset, length, side):
    from speed import TEXT_POSITIONS, Prompts

    from export.compress import make

    tokens = make(preset, frames=32, height=side, width=side).num_tokens
    assert getattr(Prompts(side), length)(32) == tokens + 1 + TEXT_POSITIONS
    assert Prompts(side).uncompressed(32) == side * side * 32 + 1 + TEXT_POSITIONS
