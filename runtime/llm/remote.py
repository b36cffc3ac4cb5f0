"""An LLM elsewhere: an OpenAI-compatible server that takes prompt embeddings, such as vLLM with --enable-prompt-embeds.

The vision half runs here; a chat goes there as it came, except that each clip is a content part of its visual tokens:
{"type": "prompt_embeds", "data": base64 of torch.save's format}. Text before and after keeps its place, the answer's stream is
passed through. The remote applies its own chat template, and some templates put a newline between parts: its count of prompt
tokens is compared with ours, and a difference becomes a warning in the answer and in the log.

Only what cannot have been begun is tried again: a connection that was refused, and the answers 429, 502 and 503 before any text.

N visual tokens, D hidden.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.bundle import Bundle
from runtime.core.errors import EngineError, UsageError, UserError, missing_package
from runtime.llm.chat import Chat, ClipTokens
from runtime.llm.scheduler import DeadlineError, Piece
from runtime.llm.torch_format import torch_save
from runtime.prompt.messages import ids_of_messages
from runtime.prompt.template import Prompt

log = logging.getLogger("runtime.llm.remote")
_COUNTED = 1 << 17  # characters of text that are tokenized for a count that is only compared
_AGAIN = (429, 502, 503)
_FINISH = {"stop": "stop", "length": "length"}


class RemoteError(UserError):
    """What the remote LLM refused or why it can't be had; status: its own, None where there was no answer."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RemoteOptions:
    """url: of the API, with /v1; dtype: "float16" or "bfloat16" of the embeddings; tries: of a request that was not begun.

    connect, silence: seconds to connect, and that may pass between two pieces.
    """

    url: str
    model: str
    api_key: str | None = None
    dtype: str = "float16"
    tries: int = 3
    connect: float = 10.0
    silence: float = 120.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f'the remote LLM\'s URL is "{self.url}", expected https://host/v1')
        if self.dtype not in ("float16", "bfloat16"):
            raise UsageError(f'embeddings of dtype "{self.dtype}", expected float16 or bfloat16')


class RemoteLLM:
    """A LanguageModel over HTTP; the bundle's tokenizer, where it has one, only counts."""

    max_context: int | None = None

    def __init__(self, bundle: Bundle, options: RemoteOptions):
        try:
            import httpx
        except ImportError:
            raise missing_package("httpx", "a remote LLM", "serve") from None
        self.options = options
        self.prompt = Prompt(bundle) if bundle.has_llm else None
        self.tokens_per_clip = bundle.manifest.tokens_per_clip
        self._running = 0
        self._headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        self._timeout = httpx.Timeout(options.silence, connect=options.connect)
        self._encoded: dict[str, str] = {}  # the latest clips, as they are sent
        self._told = False

    def check(self, messages: Sequence[dict[str, Any]], gone: Callable[[], bool] = lambda: False) -> int:
        characters = sum(len(part.get("text", "")) for message in messages for part in message["content"])
        if self.prompt is None or characters > _COUNTED:
            return 0  # the remote counts
        ids = ids_of_messages(self.prompt, messages)
        return ids.text_tokens + ids.clips * self.tokens_per_clip

    async def answer(self, chat: Chat) -> AsyncGenerator[Piece, None]:
        import httpx

        body = await asyncio.to_thread(self._body, chat)
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
        finish = None
        lines = response.aiter_lines()
        while True:
            line = await _within(anext(lines, None), chat.deadline)
            if line is None:
                break
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                break
            event = _json(data)
            if event.get("error"):
                raise RemoteError(f"the LLM at {self.options.url} failed: {_message(event)}")
            if usage := event.get("usage"):
                chat.usage.prompt_tokens = int(usage.get("prompt_tokens") or 0)
                chat.usage.completion_tokens = int(usage.get("completion_tokens") or 0)
                details = usage.get("prompt_tokens_details") or {}
                chat.usage.cached_tokens = int(details.get("cached_tokens") or 0)
            for choice in event.get("choices") or []:
                text = (choice.get("delta") or {}).get("content")
                finish = choice.get("finish_reason") or finish
                if text:
                    chat.usage.seconds.setdefault("prefill", time.perf_counter() - start)
                    yield Piece(text)
        if finish is None:
            raise RemoteError(f"the LLM at {self.options.url} ended its answer without a finish_reason; the connection was cut")
        yield Piece(finish=_FINISH.get(finish, "stop"))

    async def _refusal(self, response: Any) -> RemoteError:
        text = (await response.aread())[:65536].decode("utf-8", "replace")
        return RemoteError(
            f"the LLM at {self.options.url} answers {response.status_code}: {_message(_json(text)) or text[:200]}",
            response.status_code,
        )

    def _body(self, chat: Chat) -> bytes:
        clips = iter(chat.clips)
        messages = []
        for message in chat.messages:
            parts = [
                part if part["type"] == "text" else {"type": "prompt_embeds", "data": self._data(next(clips))}
                for part in message["content"]
            ]
            plain = len(parts) == 1 and parts[0]["type"] == "text"
            messages.append({"role": message["role"], "content": parts[0]["text"] if plain else parts or ""})
        body: dict[str, Any] = {
            "model": self.options.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": chat.sampling.temperature,
            "top_p": chat.sampling.top_p,
        }
        body |= {"max_tokens": chat.max_tokens} if chat.max_tokens else {}
        body |= {"stop": list(chat.stop)} if chat.stop else {}
        body |= {"seed": chat.sampling.seed} if chat.sampling.seed is not None else {}
        return json.dumps(body).encode()

    def _data(self, clip: ClipTokens) -> str:
        if clip.key not in self._encoded:
            while len(self._encoded) >= 8:
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
        if not self._told:
            self._told = True
            log.warning(warning)


def embeds(tokens: np.ndarray, dtype: str) -> bytes:
    """What the wire carries of visual tokens [N, D]. EngineError for values that are not finite there: the remote takes them."""
    if dtype == "bfloat16":
        finite, data = np.isfinite(tokens).all(), torch_save(tokens.astype(np.float32), bfloat16=True)
    else:
        with np.errstate(over="ignore"):
            narrow = tokens.astype(np.float16)
        finite, data = np.isfinite(narrow).all(), torch_save(narrow)
    if not finite:
        raise EngineError(f"visual tokens are not finite in {dtype}; send them as bfloat16, or use a bundle of --precision fp32")
    return data


def _pause(asked: str, otherwise: float) -> float:
    """Seconds to wait before another try: what Retry-After asks for, at most 10."""
    return min(10.0, float(asked)) if asked.isdecimal() else otherwise


async def _within(work: Any, deadline: float) -> Any:
    left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    try:
        return await asyncio.wait_for(work, left)
    except asyncio.TimeoutError:  # noqa: UP041: a class of its own before Python 3.11
        raise DeadlineError("the request's deadline has passed while the remote LLM was answering") from None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _message(body: dict[str, Any]) -> str:
    error = body.get("error", body)
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or "").split())[:500]
