"""An LLM elsewhere: an OpenAI-compatible server that takes prompt embeddings, such as vLLM with --enable-prompt-embeds.

The vision encoder runs here; a chat is forwarded as it came, except for its clips, which are sent as visual tokens (wire.py). Text
before and after a clip keeps its place, and the answer's stream is passed through. The remote applies its own chat template, and some
templates put a newline between parts: its count of prompt tokens is compared with ours, and a difference becomes a warning in the
answer and in the log.

Only a request that the remote can't have begun is tried again: after a refused connection, and after 429, 502 and 503 before any text.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.bundle import Bundle
from runtime.core.errors import UsageError, UserError, import_package
from runtime.core.options import check_limits, option, secret_option
from runtime.llm.chat import Chat, ClipTokens, DeadlineError, Piece
from runtime.llm.wire import count_tokens, embeds, error_message, event_of, json_object, pieces_of, request_body
from runtime.prompt import Prompt

log = logging.getLogger("runtime.llm.remote")
LOCAL = "local"
_COUNTED = 1 << 17  # characters of text that are tokenized for a count that is only compared
_AGAIN = (429, 502, 503)
_CLIPS = 8  # of which the encoded form is kept


class RemoteError(UserError):
    """What the remote LLM refused, or why it can't be reached; status: HTTP status of its answer, None where there was none."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class LLMOptions:
    """Where the LLM is: here, or at the address of an API, with /v1.

    tries              attempts at a request that the remote has not begun
    connect, silence   seconds to connect, and that may pass between two pieces
    """

    url: str = option(LOCAL, "an OpenAI-compatible server that takes prompt_embeds", flag="--llm", metavar="local|URL")
    model: str | None = option(None, "the model's name there", flag="--llm-model", metavar="NAME")
    api_key: str | None = secret_option("its key", flag="--llm-api-key", env="GRIDPOOL_LLM_API_KEY")
    dtype: str = option("float16", "of the embeddings sent", flag="--llm-dtype", choices=("float16", "bfloat16"))
    tries: int = 3
    connect: float = 10.0
    silence: float = 120.0

    def __post_init__(self) -> None:
        check_limits(self)
        if self.is_local:
            return
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f'the remote LLM\'s URL is "{self.url}", expected https://host/v1')
        if not self.model:
            raise UsageError(f"--llm {self.url} needs --llm-model, the model's name there")

    @property
    def is_local(self) -> bool:
        return self.url == LOCAL


class RemoteLLM:
    """A LanguageModel over HTTP; the bundle's tokenizer, where it has one, only counts."""

    max_context: int | None = None

    def __init__(self, bundle: Bundle, options: LLMOptions):
        httpx = import_package("httpx", "a remote LLM", "serve")
        self.options = options
        self.prompt = Prompt(bundle) if bundle.has_llm else None
        self.tokens_per_clip = bundle.manifest.tokens_per_clip
        self._running = 0
        self._headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        self._timeout = httpx.Timeout(options.silence, connect=options.connect)
        self._encoded: dict[str, str] = {}  # the latest clips, as they are sent
        self._warned = False

    @property
    def shared(self) -> object:
        return self

    def check(self, messages: Sequence[dict[str, Any]], gone: Callable[[], bool] = lambda: False) -> int:
        characters = sum(len(part.get("text", "")) for message in messages for part in message["content"])
        if self.prompt is None or characters > _COUNTED:
            return 0  # the remote counts
        return self.prompt.message_ids(messages).positions(self.tokens_per_clip)

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        import httpx

        body = await asyncio.to_thread(request_body, chat, self.options.model, self.clip_data)
        ours = await asyncio.to_thread(self.check, chat.messages)
        start = time.perf_counter()
        self._running += 1
        try:
            # a client a request: its connection is closed when the answer is no longer wanted, which stops the remote
            async with httpx.AsyncClient(timeout=self._timeout, headers=self._headers, follow_redirects=False) as client:
                async for piece in self._stream(client, body, chat, start):
                    yield piece
        except httpx.TimeoutException:
            raise RemoteError(f"the LLM at {self.options.url} did not answer in time") from None
        except httpx.HTTPError as error:
            raise RemoteError(f"the LLM at {self.options.url} can't be reached ({type(error).__name__})") from None
        finally:
            self._running -= 1
            chat.usage.seconds["decode"] = time.perf_counter() - start
            self._compare(chat, ours)

    def busy(self) -> dict[str, float]:
        return {"running": self._running, "waiting": 0, "kv_positions": 0}

    @property
    def healthy(self) -> bool:
        return True

    def close(self) -> None:
        self._encoded.clear()

    async def _stream(self, client: Any, body: bytes, chat: Chat, start: float) -> AsyncGenerator[Piece, None]:
        import httpx

        url = f"{self.options.url.rstrip('/')}/chat/completions"
        for left in reversed(range(self.options.tries)):
            pause = 0.2 * 2 ** (self.options.tries - left)
            try:
                request = client.build_request("POST", url, content=body, headers={"Content-Type": "application/json"})
                response = await _within(client.send(request, stream=True), chat.deadline)
            except httpx.ConnectError:
                if not left:
                    raise
                await _within(asyncio.sleep(pause), chat.deadline)
                continue
            try:
                if response.status_code == 200:
                    async for piece in self._pieces(response, chat, start):
                        yield piece
                    return
                if response.status_code not in _AGAIN or not left:
                    raise await self._refusal(response)
            finally:
                await response.aclose()
            await _within(asyncio.sleep(_pause(response.headers.get("retry-after", ""), pause)), chat.deadline)

    async def _pieces(self, response: Any, chat: Chat, start: float) -> AsyncGenerator[Piece, None]:
        """The answer's pieces from the remote's server-sent events; its usage goes to `chat.usage`."""
        end = None
        lines = response.aiter_lines()
        while (line := await _within(anext(lines, None), chat.deadline)) is not None:
            event = event_of(line)
            if event is None:
                break
            if event.get("error"):
                raise RemoteError(f"the LLM at {self.options.url} failed: {error_message(event)}")
            count_tokens(event, chat.usage)
            for piece in pieces_of(event):
                if piece.last:
                    end = piece  # the counts may come after it
                    continue
                chat.usage.seconds.setdefault("prefill", time.perf_counter() - start)
                yield piece
        if end is None:
            raise RemoteError(f"the LLM at {self.options.url} ended its answer without a finish_reason; the connection was cut")
        yield end

    async def _refusal(self, response: Any) -> RemoteError:
        text = (await response.aread())[:65536].decode("utf-8", "replace")
        return RemoteError(
            f"the LLM at {self.options.url} answers {response.status_code}: {error_message(json_object(text)) or text[:200]}",
            response.status_code,
        )

    def clip_data(self, clip: ClipTokens) -> str:
        """base64 of the tokens as they are sent; those of the latest clips are kept."""
        if clip.key not in self._encoded:
            while len(self._encoded) >= _CLIPS:
                del self._encoded[next(iter(self._encoded))]
            self._encoded[clip.key] = base64.b64encode(embeds(clip.tokens, self.options.dtype)).decode()
        return self._encoded[clip.key]

    def _compare(self, chat: Chat, ours: int) -> None:
        theirs = chat.usage.prompt_tokens
        if not ours or not theirs or ours == theirs:
            return
        warning = (
            f"the remote counts {theirs} prompt tokens, this side {ours}: its chat template is not the bundle's; a template that "
            "joins content parts with a newline adds one for each"
        )
        chat.usage.warnings.append(warning)
        if not self._warned:
            self._warned = True
            log.warning(warning)


def _pause(asked: str, otherwise: float) -> float:
    """Seconds to wait before another try: what Retry-After asks for, at most 10."""
    return min(10.0, float(asked)) if asked.isdecimal() else otherwise


async def _within(work: Any, deadline: float) -> Any:
    left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    try:
        return await asyncio.wait_for(work, left)
    except asyncio.TimeoutError:
        raise DeadlineError("the request's deadline has passed while the remote LLM was answering") from None
