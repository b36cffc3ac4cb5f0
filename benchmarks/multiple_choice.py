"""Multiple-choice questions about videos, answered by any LLaVA-OneVision checkpoint behind each preset: the shape of VideoMME.

    questions    one JSON object a line: {"video": file in --videos, "question": text, "options": [text, …], "answer": text or letter}

Options that begin with letters ("A. a dog") are listed under the question and the letter with the highest logit is the answer, as
VideoMME's own prompt asks for it; other options are whole answers, and the one with the highest likelihood a token is taken. The
reference modules of transformers answer, with this package's compression between projector and LLM. A clip is encoded once for all
presets and questions.

T frames, H, W patch rows and columns, N visual tokens, D hidden.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import log, table
from intervals import Bootstrap

from export.checkpoint import open_checkpoint
from export.compress import PRESETS, Compressor, make
from export.families import FAMILIES, family
from runtime.core.errors import ExportError, exit_code
from runtime.media.preprocess import Preprocessor, load_clip

FULL = "uncompressed"
_LETTERED = re.compile(r"^\(?([A-Z])[.):]\s*")
_ASK = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Choice:
    """answer: the index of the right option."""

    video: str
    question: str
    options: list[str]
    answer: int

    @property
    def lettered(self) -> bool:
        return all(_LETTERED.match(option) for option in self.options)


def read_questions(path: Path, videos: Path | None) -> list[Choice]:
    """The questions of a JSONL file; ExportError names the line that is wrong and what is expected there."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} can't be read ({error}); expected one JSON object a line") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_question(line, f"{path}:{number}", videos or path.parent))
    if not found:
        raise ExportError(f"{path} holds no questions; expected one JSON object a line")
    return found


def _question(line: str, where: str, videos: Path) -> Choice:
    expected = 'expected {"video": file, "question": text, "options": [two or more texts], "answer": one of them or its letter}'
    try:
        values = json.loads(line)
        video, question, options, answer = (values[name] for name in ("video", "question", "options", "answer"))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ExportError(f"{where}: {type(error).__name__} {error}; {expected}") from None
    if not (isinstance(options, list) and len(options) > 1 and all(isinstance(text, str) for text in [*options, question, video])):
        raise ExportError(f"{where}: {line[:80]}; {expected}")
    letters = [match.group(1) if (match := _LETTERED.match(option)) else None for option in options]
    if answer not in options and answer not in letters:
        raise ExportError(f'{where}: answer "{answer}" is none of the options; {expected}')
    if not (videos / video).is_file():
        raise ExportError(f"{where}: {videos / video} is not a file; give --videos the directory that holds it")
    return Choice(video, question, options, options.index(answer) if answer in options else letters.index(answer))


class Answerer:
    """The reference modules of a checkpoint on a device: `vision` and `llm` as the family loads them."""

    def __init__(self, checkpoint: Path, device: str):
        from transformers import AutoTokenizer

        source = open_checkpoint(str(checkpoint))
        known = {family(name).MODEL_TYPE: family(name) for name in FAMILIES}
        found = source.config().get("model_type")
        if found not in known:
            raise ExportError(f'{checkpoint} is of model_type "{found}"; known: {", ".join(known)}')
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        vision, llm = known[found].load_vision(source), known[found].load_llm(source)
        self.grid, self.frames, self.preprocessing = vision.grid, known[found].describe_vision(source).frames, vision.preprocessing
        self.encoder, self.projector, self.llm = (
            module.to(device, dtype).eval() for module in (vision.reference_encoder, vision.projector, llm)
        )
        self.newline, self.device, self.dtype = vision.newline.to(device, dtype), device, dtype
        self.chat = known[found].describe_llm(source).chat
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def encode(self, video: Path, frames: int) -> torch.Tensor:
        """[T, H, W, D], projected."""
        pixels, _ = load_clip(video, frames, Preprocessor(self.preprocessing))
        with torch.inference_mode():
            hidden = [self.encoder(torch.from_numpy(frame[None]).to(self.device, self.dtype)) for frame in pixels]
            return self.projector(torch.cat(hidden)).unflatten(1, self.grid)

    def choose(self, visual: torch.Tensor, question: Choice) -> int:
        """The index of the option that the model prefers; visual tokens [N, D] without the newline."""
        if question.lettered:
            text = "\n".join([question.question, *question.options, _ASK])
            letters = [self._ids(_LETTERED.match(option).group(1))[:1] for option in question.options]  # type: ignore[union-attr]
            return int(np.argmax(self._likelihoods(visual, text, letters)))
        answers = [self._ids(option) for option in question.options]
        return int(np.argmax(self._likelihoods(visual, question.question, answers)))

    def _likelihoods(self, visual: torch.Tensor, text: str, answers: list[list[int]]) -> list[float]:
        """Mean log-likelihood a token of each answer."""
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
        rendered = self.tokenizer.apply_chat_template(
            messages, chat_template=self.chat.template, add_generation_prompt=True, tokenize=False
        )
        ids = self.tokenizer(rendered, add_special_tokens=False).input_ids
        at = ids.index(self.chat.video_token_id)
        embed = self.llm.get_input_embeddings()
        embedded = [embed(torch.tensor(part, device=self.device)) for part in (ids[:at], ids[at + 1 :])]
        prompt = torch.cat([embedded[0], visual, self.newline, embedded[1]])
        found = []
        with torch.inference_mode():
            out = self.llm(inputs_embeds=prompt[None], use_cache=True, logits_to_keep=1)
            first = out.logits[0, -1].float().log_softmax(-1)
            for answer in answers:
                scores = [first[answer[0]]]
                if len(answer) > 1:
                    out.past_key_values.crop(len(prompt))
                    more = self.llm(input_ids=torch.tensor([answer[:-1]], device=self.device), past_key_values=out.past_key_values)
                    later = more.logits[0].float().log_softmax(-1)
                    scores += [row[token] for row, token in zip(later, answer[1:], strict=True)]
                found.append(float(torch.stack(scores).mean()))
        return found

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids


def table_of(
    answerer: Answerer, questions: list[Choice], videos: Path, frames: int | None, methods: list[str] | None
) -> tuple[str, dict[str, float]]:
    """The table as markdown, and {method: accuracy}."""
    grid = (frames or answerer.frames, *answerer.grid)
    reducers: dict[str, Compressor | None] = {FULL: None}
    reducers |= {name: make(name, frames=grid[0], height=grid[1], width=grid[2]) for name in methods or PRESETS}
    names = sorted({question.video for question in questions})
    chosen: dict[str, dict[int, int]] = {name: {} for name in reducers}
    for video, tokens in _encoded(answerer, names, videos, grid[0]):
        for name, reduce in reducers.items():
            visual = tokens.flatten(0, 2) if reduce is None else reduce(tokens)
            for number, question in enumerate(questions):
                if question.video == video:
                    chosen[name][number] = answerer.choose(visual, question)
    bootstrap = Bootstrap(np.array([names.index(question.video) for question in questions]))
    hits = {name: np.array([picks[n] == q.answer for n, q in enumerate(questions)], float) for name, picks in chosen.items()}
    lines = []
    for name, reduce in reducers.items():
        tokens_out = reduce.num_tokens if reduce else int(np.prod(grid))
        low, high = bootstrap.interval(hits[name])
        worse, better = bootstrap.interval(hits[name] - hits[FULL])
        same = np.mean([chosen[name][n] == chosen[FULL][n] for n in range(len(questions))])
        difference = (
            ""
            if name == FULL
            else f"{100 * (hits[name].mean() - hits[FULL].mean()):+.1f} ({100 * worse:+.1f} … {100 * better:+.1f})"
        )
        lines.append([name, str(tokens_out), f"{100 * hits[name].mean():.1f}", f"{100 * low:.1f} – {100 * high:.1f}", difference,
                      f"{100 * same:.1f}"])  # fmt: skip
    chance = 100 * np.mean([1 / len(question.options) for question in questions])
    text = table(["method", "tokens", "accuracy %", "95 %", "against uncompressed", "same answer %"], lines)
    facts = f"{len(questions)} questions about {len(names)} videos, {grid[0]} frames; chance {chance:.0f} %."
    return f"{facts}\n\n{text}", {name: float(values.mean()) for name, values in hits.items()}


def _encoded(answerer: Answerer, names: list[str], videos: Path, frames: int) -> Iterator[tuple[str, torch.Tensor]]:
    for number, name in enumerate(names, 1):
        log(f"{number} of {len(names)}: {name}")
        yield name, answerer.encode(videos / name, frames)


def run(checkpoint: Path, file: Path, videos: Path | None, frames: int | None, device: str, methods: list[str] | None) -> int:
    """Print the table of a checkpoint on the user's own questions; exit code 2 and one line for what is wrong."""

    def work() -> None:
        questions = read_questions(file, videos)
        print(table_of(Answerer(checkpoint, device), questions, videos or file.parent, frames, methods)[0])

    return exit_code(work)
