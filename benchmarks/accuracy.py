"""What compression costs in answers: every preset, and baselines, on held-out generated clips or on the user's own questions.

    python benchmarks/accuracy.py [--clips 320] [--seed 0] [--split test] [--section main ablation] [--no-bundles]
    python benchmarks/accuracy.py --checkpoint DIR --questions FILE.jsonl --videos DIR [--frames 32] [--device cuda]

Without --questions: the shipped checkpoint and the one that was trained behind the family's own pooling only, on the same clips.
Accuracy has a 95 % interval by bootstrap over clips, the difference to the uncompressed tokens a paired one. Fidelity is the cosine
of the answer's logits (their mean removed) with those of the uncompressed tokens, and how often both say the same word. The module
is timed alone at LLaVA-OneVision's shapes, T=32, 27x27, D=896, on the CPU, and the first token on the demo bundle of each preset.

With --questions: multiple choice, one JSON object a line, as benchmarks/multiple_choice.py says.

C clips, T frames, H, W patch rows and columns, D hidden, N visual tokens, Q questions, V words.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accuracy_methods
import numpy as np
import torch
from accuracy_methods import Method
from harness import ROOT, log, table, write_section
from intervals import Bootstrap

from export.compress import PRESETS, make
from export.demo import CHECKPOINT, CLIPS
from export.demo.evaluate import FRAMES, answers, clips_of, load_model
from export.demo.tiny import VOCABULARY, encoded, project
from export.scenes.draw import draw_with_labels
from export.scenes.questions import KINDS, Question, choices
from export.scenes.scene import GRID, PATCH, Scene

FAMILY = ROOT / "benchmarks" / "checkpoints" / "family-pooling"
PLOT = ROOT / "benchmarks" / "accuracy.png"
_GRID = (FRAMES, GRID, GRID)
_REAL = (32, 27, 27, 896)  # T, H, W, D of LLaVA-OneVision 0.5B
_BATCH = 8
_LOWEST = 80  # per cent, where the plot begins


@dataclass
class Clips:
    """What is asked, and the tokens of a checkpoint: before the projector [C, T, H, W, width] and after it [C, T, H, W, D]."""

    questions: list[list[Question]]
    scenes: list[Scene]
    before: torch.Tensor
    after: torch.Tensor

    @property
    def asked(self) -> list[Question]:
        return [question for questions in self.questions for question in questions]

    @property
    def clip_of(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.questions)), [len(questions) for questions in self.questions])


@dataclass
class Row:
    """A method on one checkpoint. hits: bool [Q]; logits: [Q, V]."""

    method: Method
    tokens: int
    hits: np.ndarray
    logits: torch.Tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--section", nargs="+", choices=["main", "ablation"], default=["main", "ablation"])
    parser.add_argument("--methods", nargs="+", metavar="SPEC", help="only these presets and specs; printed, not written")
    parser.add_argument("--no-bundles", action="store_true", help="leave out the time to first token, which exports every preset")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path, help="a LLaVA-OneVision checkpoint, for --questions")
    parser.add_argument("--questions", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--videos", type=Path, metavar="DIR")
    parser.add_argument("--frames", type=int, help="of a clip, for --questions (default: the checkpoint's)")
    parser.add_argument("--device", default="cpu", help="for --questions (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.questions:
        import multiple_choice

        return multiple_choice.run(
            args.checkpoint or CHECKPOINT, args.questions, args.videos, args.frames, args.device, args.methods
        )
    checkpoints = {"fair": CHECKPOINT, "family": FAMILY}
    if not FAMILY.is_dir():
        log(f"{FAMILY.relative_to(ROOT)} is not there (python -m export.demo train --pooling family): one checkpoint only")
        del checkpoints["family"]
    if args.methods:
        methods = [accuracy_methods.main_table(_GRID)[0], *[accuracy_methods.spec(text, text, _GRID) for text in args.methods]]
        for name, checkpoint in checkpoints.items():
            clips, rows = _measure(checkpoint, args, methods)
            print(f"\n{name}\n\n{_accuracy_table(clips, rows)}\n\n{_kind_table(clips, rows)}")
        return 0
    if "main" in args.section:
        _main_section(checkpoints, args)
    if "ablation" in args.section:
        _ablation_section(checkpoints, args)
    return 0


def _main_section(checkpoints: dict[str, Path], args: argparse.Namespace) -> None:
    results = {name: _measure(path, args, accuracy_methods.main_table(_GRID)) for name, path in checkpoints.items()}
    clips, rows = results["fair"]
    overhead = {row.method.name: _module_milliseconds(row.method.spec) for row in rows if row.method.spec}
    first = {} if args.no_bundles else _first_token()
    text = [
        f"{args.clips} clips of the {args.split} split, seed {args.seed}, {len(clips.asked)} questions, {FRAMES} frames of "
        f"{GRID} x {GRID} tokens. Chance, by kind: {_chances(clips)}.",
        "**Trained on a fair mix of reductions** (the shipped checkpoint)",
        _accuracy_table(clips, rows, overhead, first),
        _kind_table(clips, rows),
    ]
    if "family" in results:
        text += [
            "**Trained behind the family's own pooling only**, as the real LLaVA-OneVision was",
            _accuracy_table(*results["family"]),
            _kind_table(*results["family"]),
        ]
    write_section("accuracy", "\n\n".join(text))
    points = {name: [(row.method.name, row.tokens, float(row.hits.mean())) for row in rows] for name, (_, rows) in results.items()}
    _draw(points)


def _ablation_section(checkpoints: dict[str, Path], args: argparse.Namespace) -> None:
    text = [f"{args.clips} clips of the {args.split} split, seed {args.seed}."]
    for name, path in checkpoints.items():
        clips = _encode(path, args)
        methods = [accuracy_methods.main_table(_GRID)[0], *accuracy_methods.ablations(_GRID, clips.after.shape[-1])]
        rows = _rows(load_model(path), clips, methods)
        text += [f"**{name}**", _accuracy_table(clips, rows), norms(clips)]
    write_section("accuracy-ablations", "\n\n".join(text))


def _measure(path: Path, args: argparse.Namespace, methods: list[Method]) -> tuple[Clips, list[Row]]:
    clips = _encode(path, args)
    return clips, _rows(load_model(path), clips, methods)


def _encode(path: Path, args: argparse.Namespace) -> Clips:
    model = load_model(path)
    questions, scenes, before, after = [], [], [], []
    for clip in clips_of(args.split, args.seed, args.clips):
        questions.append(clip.questions)
        scenes.append(clip.scene)
        with torch.inference_mode():
            before.append(encoded(model, torch.from_numpy(clip.frames)[None])[0])
            after.append(project(model, before[-1]))
    log(f"{path.name}: {len(questions)} clips encoded")
    return Clips(questions, scenes, torch.stack(before), torch.stack(after))


def _rows(model: Any, clips: Clips, methods: list[Method]) -> list[Row]:
    words = torch.tensor([VOCABULARY.index(question.answer) for question in clips.asked])
    rows = []
    for method in methods:
        logits = []
        for start in range(0, len(clips.questions), _BATCH):
            part = range(start, min(start + _BATCH, len(clips.questions)))
            with torch.inference_mode():
                if method.before:
                    visual = project(model, torch.stack([method.reduce(clips.before[clip], clip) for clip in part]))
                else:
                    visual = torch.stack([method.reduce(clips.after[clip], clip) for clip in part])
                logits.append(answers(model, visual, [clips.questions[clip] for clip in part]))
        scores = torch.cat(logits)
        rows.append(Row(method, visual.shape[1], (scores.argmax(-1) == words).numpy(), scores))
        log(f"{method.name}: {rows[-1].tokens} tokens, {rows[-1].hits.mean():.3f}")
    return rows


def _accuracy_table(
    clips: Clips, rows: list[Row], overhead: dict[str, float] | None = None, first: dict[str, float] | None = None
) -> str:
    bootstrap = Bootstrap(clips.clip_of)
    reference = rows[0]
    full = reference.logits - reference.logits.mean(-1, keepdim=True)
    columns = ["method", "tokens", "ratio", "accuracy %", "95 %", "against uncompressed", "cosine", "same answer %"]
    columns += ["module ms"] * bool(overhead) + ["first token ms"] * bool(first)
    lines = []
    for row in rows:
        low, high = bootstrap.interval(row.hits)
        worse, better = bootstrap.interval(row.hits.astype(float) - reference.hits)
        cosine = torch.nn.functional.cosine_similarity(row.logits - row.logits.mean(-1, keepdim=True), full, dim=-1).mean()
        same = (row.logits.argmax(-1) == reference.logits.argmax(-1)).float().mean()
        difference = 100 * (row.hits.mean() - reference.hits.mean())
        line = [
            row.method.name,
            str(row.tokens),
            f"{reference.tokens / row.tokens:.1f}",
            f"{100 * row.hits.mean():.1f}",
            f"{100 * low:.1f} – {100 * high:.1f}",
            "" if row is reference else f"{difference:+.1f} ({100 * worse:+.1f} … {100 * better:+.1f})",
            f"{cosine:.3f}",
            f"{100 * same:.1f}",
        ]
        for numbers in (overhead, first):
            if numbers:
                line.append(f"{numbers[row.method.name]:.0f}" if row.method.name in numbers else "")
        lines.append(line)
    return table(columns, lines)


def _kind_table(clips: Clips, rows: list[Row]) -> str:
    kinds = np.array([question.kind for question in clips.asked])
    lines = [[row.method.name, *[f"{100 * row.hits[kinds == kind].mean():.0f}" for kind in KINDS]] for row in rows]
    counts = ["questions", *[str((kinds == kind).sum()) for kind in KINDS]]
    return table(["correct, % of", *KINDS], [counts, *lines])


def _chances(clips: Clips) -> str:
    chance = {kind: [1 / len(choices(q)) for q in clips.asked if q.kind == kind] for kind in KINDS}
    return ", ".join(f"{kind} {100 * np.mean(values):.0f} %" for kind, values in chance.items() if values)


def norms(clips: Clips) -> str:
    """How the tokens' norms relate to what the patches show, by the generator's own masks."""
    covered = []
    for scene in clips.scenes:
        _, labels = draw_with_labels(scene)
        shown = (labels[..., 0] > 0).reshape(FRAMES, GRID, PATCH, GRID, PATCH)
        covered.append(shown.mean((2, 4)))
    content = np.concatenate(covered).ravel()
    lines = []
    for name, tokens in (("before the projector", clips.before), ("after it", clips.after)):
        rms = (tokens.norm(dim=-1) / tokens.shape[-1] ** 0.5).flatten().numpy()
        some, none = rms[content > 0.25], rms[content == 0]
        pooled = np.concatenate([some, none]).argsort().argsort()
        auc = (pooled[: len(some)].mean() - (len(some) - 1) / 2) / len(none)
        rank = np.corrcoef(rms.argsort().argsort(), content.argsort().argsort())[0, 1]
        low, middle, high = np.percentile(rms, [5, 50, 95])
        lines.append([name, f"{none.mean():.2f}", f"{some.mean():.2f}", f"{low:.2f}", f"{middle:.2f}", f"{high:.2f}", f"{auc:.3f}",
                      f"{rank:.2f}"])  # fmt: skip
    return table(
        [
            "RMS of a token",
            "background",
            "content",
            "5 %",
            "median",
            "95 %",
            "AUC content or not",
            "rank correlation with coverage",
        ],
        lines,
    )


def _module_milliseconds(spec: str, rounds: int = 5) -> float:
    frames, height, width, hidden = _REAL
    module = make(spec, frames=frames, height=height, width=width)
    x = torch.randn(frames, height, width, hidden)
    seconds = []
    with torch.inference_mode():
        module(x)
        for _ in range(rounds):
            start = time.perf_counter()
            module(x)
            seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def _first_token() -> dict[str, float]:
    """Milliseconds to the first token of each preset's demo bundle, video decoding included."""
    from export.options import ExportOptions
    from export.pipeline import export_bundle
    from runtime.bundle import Bundle
    from runtime.chat import VideoChat

    clip = sorted(CLIPS.glob("*.mp4"))[0]
    question = json.loads(clip.with_suffix(".json").read_text())["questions"][0]["question"]
    chats = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in PRESETS:
            export_bundle(ExportOptions(out=str(Path(directory) / name), compress=name))
            chats[name] = VideoChat.open(Bundle.open(Path(directory) / name), "onnx")
            log(f"{name}: exported")
        seconds: dict[str, list[float]] = {name: [] for name in chats}
        for _ in range(12):
            for name, chat in chats.items():
                next(iter(chat.ask(clip, question)))
                seconds[name].append(chat.answer.seconds["time_to_first_token"])
    return {name: 1e3 * statistics.median(values[2:]) for name, values in seconds.items()}


def _draw(points: dict[str, list[tuple[str, int, float]]]) -> None:
    """Accuracy against tokens; presets and what is on the Pareto front are numbered, with a key beside the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"fair": "trained behind a fair mix", "family": "trained behind the family's pooling"}
    figure, axes = pyplot.subplots(1, len(points), figsize=(8.5 * len(points), 5), sharey=True, layout="constrained", squeeze=False)
    for axis, (name, found) in zip(axes[0], points.items(), strict=True):
        front: list[tuple[str, int, float]] = []
        for point in sorted(found, key=lambda point: (point[1], -point[2])):
            if not front or point[2] > front[-1][2]:
                front.append(point)
        axis.step([p[1] for p in front], [100 * p[2] for p in front], where="post", color="tab:blue", lw=1, label="Pareto front")
        marks = {"preset": ("tab:red", "o"), "other spec": ("tab:gray", "o"), "baseline": ("tab:olive", "s")}
        for kind, (color, marker) in marks.items():
            mine = [point for point in found if _kind_of(point[0]) == kind and 100 * point[2] >= _LOWEST]
            axis.scatter([p[1] for p in mine], [100 * p[2] for p in mine], s=26, color=color, marker=marker, label=kind, zorder=3)
        key = []
        for label, tokens, accuracy in found:
            if 100 * accuracy >= _LOWEST and (label in PRESETS or label == "uncompressed" or label in [p[0] for p in front]):
                key.append(f"{len(key) + 1}  {label}")
                axis.annotate(str(len(key)), (tokens, 100 * accuracy), fontsize=8, xytext=(5, -3), textcoords="offset points")
        below = [
            f"{label}, {tokens} tokens: {100 * accuracy:.0f} %" for label, tokens, accuracy in found if 100 * accuracy < _LOWEST
        ]
        text = "\n".join([*key, "", f"below {_LOWEST} %, not drawn:", *below] if below else key)
        axis.text(1.02, 1, text, transform=axis.transAxes, va="top", fontsize=8)
        ticks = [81, 162, 324, 648, 1296]
        axis.set(xscale="log", xlabel="visual tokens a clip", title=titles.get(name, name), ylim=(_LOWEST, 100))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("questions answered correctly, %")
    axes[0, 0].legend(loc="lower right")
    figure.savefig(PLOT, dpi=110)
    log(f"wrote {PLOT.relative_to(ROOT)}")


def _kind_of(label: str) -> str:
    if label in PRESETS:
        return "preset"
    return "baseline" if " " in label or label == "uncompressed" else "other spec"


if __name__ == "__main__":
    sys.exit(main())
