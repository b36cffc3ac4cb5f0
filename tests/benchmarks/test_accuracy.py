"""benchmarks/accuracy.py: its rows are what they say, its intervals are a bootstrap's, and it takes the user's own questions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from export.demo import CHECKPOINT, CLIPS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy_methods  # noqa: E402
import multiple_choice  # noqa: E402
from intervals import Bootstrap  # noqa: E402

from runtime.core.errors import ExportError  # noqa: E402

GRID = (16, 9, 9)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(*GRID, 8, generator=torch.Generator().manual_seed(0))


def method(methods, start: str):
    (found,) = [one for one in methods if one.name == start] or [one for one in methods if one.name.startswith(start)]
    return found


def test_baselines_are_what_their_names_say(x):
    rows = accuracy_methods.main_table(GRID)
    flat, norms = x.flatten(0, 2), x.flatten(0, 2).norm(dim=-1)
    assert method(rows, "uncompressed").reduce(x, 0).equal(flat)
    assert method(rows, "every 4. frame").reduce(x, 0).equal(x[2::4].flatten(0, 2))
    high, low = (method(rows, name).reduce(x, 0) for name in ("highest norms, 0.25", "lowest norms (anti-norm), 0.25"))
    assert high.equal(flat[norms >= norms.sort(descending=True).values[323]])
    assert low.equal(flat[norms <= norms.sort().values[323]])
    random = method(rows, "random selection, 0.25")
    assert random.reduce(x, 0).equal(random.reduce(x, 0)) and not random.reduce(x, 0).equal(random.reduce(x, 1))
    anti = method(rows, "windows weighted against").reduce(x, 0)
    window = x[0, :2, :2].flatten(0, 1)
    weights = torch.softmax(-window.square().mean(-1).sqrt(), 0)
    torch.testing.assert_close(anti[0], (weights[:, None] * window).sum(0))


def test_rows_cover_every_preset_and_two_to_one_up_to_sixteen(x):
    from export.compress import PRESETS

    rows = accuracy_methods.main_table(GRID)
    assert set(PRESETS) <= {row.name for row in rows}
    ratios = {x[..., 0].numel() / len(row.reduce(x, 0)) for row in rows}
    for low, high in ((1.9, 2.1), (3.2, 4.1), (7, 9.1), (15, 17)):
        assert any(low <= ratio <= high for ratio in ratios), (low, high)


def test_ablated_variants_agree_with_the_stages_where_they_meet(x):
    rows = accuracy_methods.ablations(GRID, 8)
    nsp = method(rows, "nsp:window=2,temperature=1").reduce(x, 0)
    average = method(rows, "nsp:window=2,temperature=0").reduce(x, 0)
    assert not torch.allclose(nsp, average, atol=1e-2)
    relative = accuracy_methods._windows(lambda norm: 0 * norm)(x, 0)
    torch.testing.assert_close(relative, average.reshape(relative.shape), atol=1e-6, rtol=1e-5)
    apart = method(rows, "st-gridpool, levels read the clip").reduce(x, 0)
    in_turn = accuracy_methods.spec("", "st-gridpool", GRID).reduce(x, 0)
    differs = (apart - in_turn).reshape(16, -1).abs().amax(-1) > 1e-5
    assert differs.nonzero().flatten().tolist() == [15]  # the second level reads what the first wrote to frame 7, and writes to 15


def test_the_bootstrap_is_over_clips():
    rng = np.random.default_rng(0)
    clip_of = np.repeat(np.arange(200), 8)
    easy = rng.random(200) < 0.7  # all questions of a clip go together
    low, high = Bootstrap(clip_of).interval(easy[clip_of])
    half = 1.96 * np.sqrt(0.7 * 0.3 / 200)
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)
    assert low < easy.mean() < high
    assert Bootstrap(clip_of).interval(np.zeros(1600)) == (0, 0)


@pytest.fixture
def questions(tmp_path) -> Path:
    lines = []
    for path in sorted(CLIPS.glob("*.json")):
        values = json.loads(path.read_text())
        for asked in values["questions"]:
            if asked["kind"] == "shape":
                lines.append({"video": values["clip"], "question": asked["question"], "answer": asked["answer"],
                              "options": ["circle", "square", "triangle", "cross"]})  # fmt: skip
            if asked["kind"] == "direction":
                lines.append({"video": values["clip"], "question": asked["question"], "answer": asked["answer"],
                              "options": ["left", "right", "up", "down", "nowhere"]})  # fmt: skip
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


def test_the_users_own_questions_are_answered_by_a_checkpoint(questions):
    command = [sys.executable, "benchmarks/accuracy.py", "--checkpoint", str(CHECKPOINT), "--questions", str(questions)]
    command += ["--videos", str(CLIPS), "--methods", "llava-ov", "st-gridpool"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=None)
    assert done.returncode == 0, done.stderr
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")}
    assert float(rows["uncompressed"][2]) >= 90
    assert float(rows["st-gridpool"][2]) >= 75
    assert rows["uncompressed"][1].strip() == "1296" and rows["st-gridpool"][1].strip() == "256"


def test_a_letter_answers_when_the_options_have_letters(questions):
    answerer = multiple_choice.Answerer(CHECKPOINT, "cpu")
    seen = []
    answerer._likelihoods = lambda visual, text, answers: seen.append((text, answers)) or [0.0, 2.0]  # type: ignore[method-assign]
    choice = multiple_choice.Choice("a.mp4", "what is it ?", ["A. a cross", "B. a circle"], 1)
    assert answerer.choose(torch.zeros(1, 128), choice) == 1
    ((text, answers),) = seen
    assert text.splitlines()[:3] == ["what is it ?", "A. a cross", "B. a circle"] and len(answers) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected"),
        ('{"video": "shapes.mp4", "question": "?"}', "'options'"),
        ('{"video": "shapes.mp4", "question": "?", "options": ["a"], "answer": "a"}', "two or more"),
        ('{"video": "shapes.mp4", "question": "?", "options": ["a", "b"], "answer": "c"}', 'answer "c" is none'),
        ('{"video": "gone.mp4", "question": "?", "options": ["a", "b"], "answer": "b"}', "is not a file"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    file = tmp_path / "q.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ExportError, match=rf"q\.jsonl:1: .*{message}"):
        multiple_choice.read_questions(file, CLIPS)
