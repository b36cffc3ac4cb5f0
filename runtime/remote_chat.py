"""VideoChat with a remote LLM: encode here, send the compressed tokens, stream the answer. For a device without room for an LLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from runtime.bundle import VISION, Bundle
from runtime.chat import Answer, AskOptions
from runtime.engine import EngineOptions
from runtime.llm.chat import Chat, ClipTokens
from runtime.llm.remote import LLMOptions, RemoteLLM
from runtime.media.clip import check_file
from runtime.prompt.template import question_about_clip
from runtime.vision.encoder import VisionEncoder


class RemoteChat:
    """The vision encoder loaded here, the LLM at an address; `answer` is of the latest question, without ids, which the remote keeps."""

    def __init__(self, vision: VisionEncoder, llm: RemoteLLM):
        self.vision, self.llm, self.bundle = vision, llm, vision.bundle
        self.answer = Answer()
        self.warnings: list[str] = []

    @classmethod
    def open(
        cls, bundle: Bundle, remote: LLMOptions, backend: str = "auto", options: EngineOptions = EngineOptions()
    ) -> RemoteChat:
        bundle.model(VISION)  # its error says how to get one
        return cls(VisionEncoder.open(bundle, backend, options), RemoteLLM(bundle, remote))

    @staticmethod
    def check(video: str | Path, question: str) -> None:
        """Refuse a wrong question or file before anything is loaded."""
        question_about_clip(question)
        check_file(Path(video))

    def ask(self, video: str | Path, question: str, options: AskOptions = AskOptions()) -> Iterator[str]:
        """Encode, and return the stream of the answer's text. RemoteError for what the remote refuses or can't do."""
        self.check(video, question)
        visual = self.vision.encode(video)
        chat = Chat(
            question_about_clip(question), [ClipTokens(str(video), visual.tokens)], options.max_new_tokens, options.sampling
        )
        self.answer = Answer.about(visual, self.bundle)
        return self._stream(chat)

    def _stream(self, chat: Chat) -> Iterator[str]:
        self.llm.close()  # the clips that it keeps are of earlier questions
        loop, start = asyncio.new_event_loop(), time.perf_counter()
        pieces = self.llm.answer(chat)
        try:
            while True:
                piece = loop.run_until_complete(anext(pieces))
                if piece.text:
                    elapsed = time.perf_counter() - start
                    self.answer.seconds.setdefault("time_to_first_token", sum(self.answer.seconds.values()) + elapsed)
                    self.answer.text += piece.text
                    yield piece.text
                if piece.last:
                    return
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()
            self.answer.prompt_tokens = chat.usage.prompt_tokens
            self.answer.seconds["remote"] = time.perf_counter() - start
            self.warnings = chat.usage.warnings
