"""What goes to a remote LLM and comes back: a chat as the body of /v1/chat/completions, server-sent events as pieces of an answer.

Each clip is a content part of its visual tokens: {"type": "prompt_embeds", "data": base64 of torch.save's format}.

N visual tokens, D hidden.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from runtime.core.errors import EngineError
from runtime.llm.chat import Chat, ClipTokens, Piece, Usage
from runtime.llm.torch_format import torch_save


def request_body(chat: Chat, model: str | None, data: Callable[[ClipTokens], str]) -> bytes:
    """data: the text of a clip's part."""
    clips = iter(chat.clips)
    messages = []
    for message in chat.messages:
        parts = [
            part if part["type"] == "text" else {"type": "prompt_embeds", "data": data(next(clips))} for part in message["content"]
        ]
        plain = len(parts) == 1 and parts[0]["type"] == "text"
        messages.append({"role": message["role"], "content": parts[0]["text"] if plain else parts or ""})
    body: dict[str, Any] = {
        "model": model,
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


def embeds(tokens: np.ndarray, dtype: str) -> bytes:
    """The file that carries visual tokens [N, D]; dtype: "float16" or "bfloat16".

    EngineError for values that are not finite in it: the remote would compute with them.
    """
    if dtype == "bfloat16":
        finite, data = np.isfinite(tokens).all(), torch_save(tokens.astype(np.float32), bfloat16=True)
    else:
        with np.errstate(over="ignore"):
            narrow = tokens.astype(np.float16)
        finite, data = np.isfinite(narrow).all(), torch_save(narrow)
    if not finite:
        raise EngineError(f"visual tokens are not finite in {dtype}; send them as bfloat16, or use a bundle of --precision fp32")
    return data


def event_of(line: str) -> dict[str, Any] | None:
    """The JSON of a server-sent event's line: {} for a line without an event, None at the end of the answer."""
    if not line.startswith("data:"):
        return {}
    data = line.removeprefix("data:").strip()
    return None if data == "[DONE]" else json_object(data)


def pieces_of(event: dict[str, Any]) -> list[Piece]:
    """The text in an event, and why the answer ended where the event says so."""
    pieces = []
    for choice in event.get("choices") or []:
        if text := (choice.get("delta") or {}).get("content"):
            pieces.append(Piece(text))
        if finish := choice.get("finish_reason"):
            pieces.append(Piece(finish="length" if finish == "length" else "stop"))
    return pieces


def count_tokens(event: dict[str, Any], usage: Usage) -> None:
    """Copy the counts of an event that has them; 0 for what the remote does not count."""
    if counts := event.get("usage"):
        usage.prompt_tokens = int(counts.get("prompt_tokens") or 0)
        usage.completion_tokens = int(counts.get("completion_tokens") or 0)
        usage.cached_tokens = int((counts.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def json_object(text: str) -> dict[str, Any]:
    """{} where the text is not JSON or not an object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def error_message(body: dict[str, Any]) -> str:
    """The message of an error in any of the forms that servers use, in one line; "" where there is none."""
    error = body.get("error", body)
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or "").split())[:500]
