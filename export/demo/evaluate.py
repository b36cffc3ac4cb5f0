"""How many questions about generated clips a checkpoint answers correctly, behind a token compression.

    torch     the library's model with this package's compression between projector and LLM, all questions of a clip in one pass
    bundle    the same clips as H.264 files of several sizes and rates, through the exported graphs and ONNX Runtime, one prompt each

An answer is correct when its first word is. C clips, T frames, N visual tokens, D hidden, Q questions, V words.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from export.compress import DEFAULT_PRESET, expand, make
from export.demo import CHECKPOINT
from export.demo.packing import answer_logits, pack, use_blocked_attention
from export.demo.tiny import VOCABULARY, encoded, project
from export.scenes.draw import DrawnClip, make_clip
from export.scenes.questions import Question, choices
from export.scenes.scene import GRID, SPLITS, clip_rng
from runtime.core.errors import ExportError
from runtime.core.options import check_limits, option

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration

FRAMES = 16
_BATCH = 8  # clips at a time
_SCALES = (2, 3, 4)  # pixels of the file a pixel, frames of the file a frame, and frames a second
_HOLDS = (2, 4, 5)
_RATES = (10, 16, 25, 30)


@dataclass(frozen=True)
class EvaluateOptions:
    """What is asked about, and what answers; ExportError for a value out of range."""

    seed: int = option(0, "seed of the clips", at_least=0)
    clips: int = option(300, "how many clips", at_least=1)
    split: str = option("test", choices=SPLITS)
    compress: str = option(DEFAULT_PRESET, "preset or spec of the compression", metavar="SPEC")
    checkpoint: Path = option(CHECKPOINT, "a directory in the layout of the shipped one, which is the default", metavar="DIR")
    bundle: Path | None = option(None, "let an exported bundle answer instead, from mp4 files", metavar="DIR")

    def __post_init__(self) -> None:
        check_limits(self, ExportError)


def evaluate(options: EvaluateOptions, progress: Callable[[int, int], None] = lambda done, clips: None) -> dict[str, Any]:
    """{"accuracy", "questions", "clips", "seed", "split", "compress", "tokens_per_clip", "compression", "kinds": {kind: {"accuracy",
    "chance", "questions"}}}. SpecError, CheckpointError and BundleError say what does not fit."""
    compression, answered = _by_bundle(options) if options.bundle else _by_torch(options)
    kinds: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for done, (questions, words) in enumerate(answered, 1):
        for question, word in zip(questions, words, strict=True):
            kinds[question.kind].append((word == question.answer, 1 / len(choices(question))))
        progress(done, options.clips)
    right = [hit for asked in kinds.values() for hit, _ in asked]
    return {
        "accuracy": round(float(np.mean(right)), 4),
        "questions": len(right),
        "clips": options.clips,
        "seed": options.seed,
        "split": options.split,
        **compression,
        "kinds": {
            kind: {
                "accuracy": round(float(np.mean([hit for hit, _ in asked])), 4),
                "chance": round(float(np.mean([chance for _, chance in asked])), 4),
                "questions": len(asked),
            }
            for kind, asked in sorted(kinds.items())
        },
    }


def clips_of(split: str, seed: int, count: int) -> Iterator[DrawnClip]:
    """The clips of a seed, one by one; a longer run begins with those of a shorter one."""
    for index in range(count):
        yield make_clip(clip_rng(split, seed, index), FRAMES)


def load_model(checkpoint: Path) -> LlavaOnevisionForConditionalGeneration:
    """The library's model of a demo checkpoint in float32; ExportError where it has other words than the generated questions."""
    from transformers import LlavaOnevisionForConditionalGeneration
    from transformers.utils import logging

    if not (checkpoint / "config.json").is_file():
        raise ExportError(f"{checkpoint} is not a checkpoint: it has no config.json; python -m export.demo train makes one")
    logging.disable_progress_bar()
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    words = model.config.text_config.vocab_size
    if words != len(VOCABULARY):
        raise ExportError(f"{checkpoint} has {words} words, generated questions have {len(VOCABULARY)}; train it again")
    use_blocked_attention(model)
    return model


def answers(model: LlavaOnevisionForConditionalGeneration, visual: torch.Tensor, questions: list[list[Question]]) -> torch.Tensor:
    """Logits [Q, V] of the answers' first words, in the order of clips and questions; visual tokens [C, N, D]."""
    with torch.inference_mode():
        logits, _ = answer_logits(model, visual, pack(questions, max(map(len, questions))))
    return logits[::2]  # the second position of each question is the answer's end


def _by_torch(options: EvaluateOptions) -> tuple[dict[str, Any], Iterator[tuple[list[Question], list[str]]]]:
    compress = make(options.compress, frames=FRAMES, height=GRID, width=GRID)
    model = load_model(options.checkpoint)

    def run() -> Iterator[tuple[list[Question], list[str]]]:
        drawn = clips_of(options.split, options.seed, options.clips)
        while clips := list(islice(drawn, _BATCH)):
            asked = [clip.questions for clip in clips]
            with torch.inference_mode():
                frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
                tokens = project(model, encoded(model, frames))
                visual = torch.stack([compress(one) for one in tokens])
            words = iter([VOCABULARY[n] for n in answers(model, visual, asked).argmax(-1)])
            for questions in asked:
                yield questions, [next(words) for _ in questions]

    return _compression(expand(options.compress), compress.num_tokens), run()


def _by_bundle(options: EvaluateOptions) -> tuple[dict[str, Any], Iterator[tuple[list[Question], list[str]]]]:
    from export.demo.clips import write_mp4
    from runtime.bundle import Bundle
    from runtime.chat import AskOptions, VideoChat

    assert options.bundle
    bundle = Bundle.open(options.bundle)
    chat = VideoChat.open(bundle, "onnx")

    def run() -> Iterator[tuple[list[Question], list[str]]]:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "clip.mp4"
            for number, clip in enumerate(clips_of(options.split, options.seed, options.clips)):
                at = number % len(_SCALES), number % len(_HOLDS), number % len(_RATES)
                write_mp4(path, clip.frames, scale=_SCALES[at[0]], hold=_HOLDS[at[1]], rate=_RATES[at[2]])
                visual = chat.vision.encode(path)
                words = []
                for question in clip.questions:
                    text = "".join(chat.ask_about(visual, question.question, AskOptions(max_new_tokens=4)))
                    words.append(text.split()[0] if text.split() else "")
                yield clip.questions, words

    return _compression(bundle.manifest.compression.spec, bundle.manifest.tokens_per_clip - 1), run()


def _compression(spec: str, tokens: int) -> dict[str, Any]:
    return {"compress": spec, "tokens_per_clip": tokens, "compression": round(FRAMES * GRID * GRID / tokens, 2)}
