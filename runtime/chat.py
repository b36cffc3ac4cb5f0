"""VideoChat: video and question -> streamed answer, with the token counts and stage timings of that answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import PromptError
from runtime.core.options import check_limits, nested, option
from runtime.engine import EngineOptions
from runtime.llm.chat import ClipTokens
from runtime.llm.decoder import Conversation, LocalDecoder, check_context
from runtime.llm.generation import Generation, Request, keys_of
from runtime.llm.sampling import Sampling
from runtime.media.clip import check_file
from runtime.prompt import Prompt, PromptIds
from runtime.vision.encoder import VisionEncoder, VisualTokens


@dataclass(frozen=True)
class AskOptions:
    """How long an answer may get, and how its tokens are chosen."""

    max_new_tokens: int = option(128, "length of the answer at most", at_least=1)
    sampling: Sampling = nested(Sampling())

    def __post_init__(self) -> None:
        check_limits(self, PromptError)


@dataclass
class Answer:
    """The answer's text and what it cost; `seconds` by stage, complete once the stream has ended; `notes` about the sampled frames."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    patch_tokens: int = 0
    visual_tokens: int = 0
    prompt_tokens: int = 0
    frames: list[int] = field(default_factory=list)
    repeated_frames: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def about(cls, visual: VisualTokens, bundle: Bundle) -> Answer:
        """What is known of a clip's answer before its first token."""
        return cls(
            patch_tokens=bundle.manifest.patch_tokens,
            visual_tokens=len(visual.tokens),
            frames=list(visual.clip.indices),
            repeated_frames=visual.clip.repeated,
            notes=visual.clip.notes,
            seconds=dict(visual.seconds),
        )

    def as_dict(self) -> dict[str, Any]:
        values = asdict(self)
        del values["notes"]  # for people, not programs
        values["compression"] = round(self.patch_tokens / max(1, self.visual_tokens), 2)
        if len(self.ids) > 1:  # the first id is there when the prefill ends
            values["decode_tokens_per_second"] = round((len(self.ids) - 1) / self.seconds["decode"], 2)
        return values


class VideoChat:
    """A bundle ready to answer questions: both engines loaded."""

    def __init__(self, prompt: Prompt, vision: VisionEncoder, decoder: LocalDecoder):
        self.bundle, self.vision, self.decoder, self.prompt = prompt.bundle, vision, decoder, prompt
        self.answer = Answer()  # of the latest question

    @classmethod
    def open(
        cls, bundle: Bundle, backend: str = "auto", options: EngineOptions = EngineOptions(), prompt: Prompt | None = None
    ) -> VideoChat:
        """Load vision encoder and LLM. The context is checked against the clip's tokens before anything is loaded.

        prompt: the bundle's, where a caller has it already, so that its tokenizer is not read again.
        """
        check_context(bundle.manifest.tokens_per_clip + 1, bundle.max_context)
        prompt = prompt or Prompt(bundle)
        return cls(prompt, VisionEncoder.open(bundle, backend, options), LocalDecoder.open(bundle, backend, options))

    @staticmethod
    def check(prompt: Prompt, video: str | Path, question: str) -> PromptIds:
        """Refuse a wrong question or file, which takes no weights; return the question's prompt."""
        ids, bundle = prompt.ids(question), prompt.bundle
        check_context(ids.positions(bundle.manifest.tokens_per_clip), bundle.max_context)
        check_file(Path(video))
        return ids

    def ask(self, video: str | Path, question: str, options: AskOptions = AskOptions()) -> Iterator[str]:
        """Encode, prefill, and return the stream of the answer's text; `self.answer` has the counts and timings."""
        ids = self.check(self.prompt, video, question)
        return self._answer(self.vision.encode(video), ids, options)

    def ask_about(self, visual: VisualTokens, question: str, options: AskOptions = AskOptions()) -> Iterator[str]:
        """The same for a clip that was encoded before."""
        return self._answer(visual, self.prompt.ids(question), options)

    def _answer(self, visual: VisualTokens, ids: PromptIds, options: AskOptions) -> Iterator[str]:
        start = time.perf_counter()
        keys, embeddings = keys_of(ids, [ClipTokens("", visual.tokens)]), self.prompt.embed(ids, visual.tokens)
        generation = Generation(Request(keys, embeddings[0], options.max_new_tokens, options.sampling), self.prompt)
        conversation = self.decoder.conversation()
        logits = conversation.extend(embeddings)
        prefill = time.perf_counter() - start
        self.answer = Answer.about(visual, self.bundle)
        self.answer.ids, self.answer.prompt_tokens = generation.ids, len(keys)
        self.answer.seconds |= {"prefill": prefill, "time_to_first_token": sum(visual.seconds.values()) + prefill}
        return self._decode(self.answer, generation, conversation, logits)

    def _decode(self, answer: Answer, generation: Generation, conversation: Conversation, logits: np.ndarray) -> Iterator[str]:
        start = time.perf_counter()
        while True:
            piece = generation.next_piece(logits, conversation.length == self.decoder.max_context)
            if piece.finish != "stop":  # which chose no id
                answer.seconds["decode"] = time.perf_counter() - start
            if piece.text:
                answer.text += piece.text
                yield piece.text
            if piece.last:
                return
            logits = conversation.extend(self.prompt.embeddings[generation.ids[-1:]][None])
