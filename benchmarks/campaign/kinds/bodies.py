"""Damaged request bodies, JSON in structure, to the three POST routes of a running server."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from benchmarks.campaign import mutate_bytes, mutate_json
from benchmarks.campaign.kinds.http import HttpKind
from benchmarks.campaign.run import Run
from benchmarks.campaign.sandbox import Case
from benchmarks.campaign.server import ANSWER, MAX_BODY, MODEL, data_url, request, send
from benchmarks.campaign.verdicts import Fault

_ROUTES = {".chat": "/v1/chat/completions", ".tokens": "/v1/video/tokens", ".inspect": "/v1/video/inspect"}
STATUS = (200, 400, 403, 404, 405, 408, 411, 413, 415, 422, 429, 431, 503, 504)
_WORDS = (
    "assistant",
    "system",
    "tool",
    "image_url",
    "video_url",
    "text",
    "npz",
    "auto",
    "json_object",
    MODEL,
    "file:///etc/passwd",
)


class Bodies(HttpKind):
    name = "bodies"
    share = 2.0

    def prepare(self, run: Run) -> None:
        super().prepare(run)
        media = self.bundle.parent / "media"
        self.files = [path.read_bytes() for path in sorted(media.iterdir()) if path.suffix != ".json"]
        self.urls = {
            "CLIP": data_url(self.clip),
            "STILL": data_url(media / "still.png", "image/png"),
            "MOVING": data_url(media / "moving.gif", "image/gif"),
        }

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        suffix = rng.choice((".chat", ".chat", ".chat", ".tokens", ".inspect"))
        text = mutate_json.mutated(rng, rng.choice(_CHATS) if suffix == ".chat" else rng.choice(_VIDEOS), _WORDS)
        for name, url in self.urls.items():
            text = text.replace(f'"{name}"'.encode(), f'"{url}"'.encode())
        return Case(text.replace(b'"DAMAGED"', f'"{self._damaged(rng)}"'.encode()), suffix)

    async def attempt(self, port: int, case: Case) -> Fault | None:
        try:
            response = await send(port, request(_ROUTES[case.suffix], case.data))
        except asyncio.TimeoutError:
            return Fault("hang", _ROUTES[case.suffix], f"no answer in {ANSWER:.0f} s")
        except OSError:
            return None  # the server says why, or is gone
        if not response.status and len(case.data) > 4 * MAX_BODY:
            return None  # hung up on, as anybody is who goes on sending
        if response.status not in STATUS:
            return Fault(
                "answer", f"status {response.status} of {_ROUTES[case.suffix]}", response.body[:2000].decode(errors="replace")
            )
        values = response.json()
        if response.status != 200 and not (isinstance(values, dict) and values.get("error", {}).get("message")):
            return Fault("answer", f"no error message with {response.status}", response.body[:2000].decode(errors="replace"))
        return None

    def _damaged(self, rng: random.Random) -> str:
        import base64

        data = mutate_bytes.mutated(rng, rng.choice(self.files), self.files)
        return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"


def _user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def _clip(url: str, kind: str = "video_url") -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


_TEXT = {"type": "text", "text": "which shape appears last ?"}
_CHATS: list[dict[str, Any]] = [
    {"model": MODEL, "messages": [{"role": "user", "content": "what color is the cross ?"}], "max_tokens": 4},
    {
        "model": MODEL,
        "messages": _user(_clip("CLIP"), _TEXT),
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    {
        "model": MODEL,
        "messages": _user(_clip("STILL", "image_url"), _TEXT),
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["a"],
    },
    {"model": MODEL, "messages": _user(_clip("DAMAGED"), _TEXT), "max_tokens": 4},
    {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "you are a helpful assistant"},
            *_user(_clip("CLIP"), _clip("MOVING"), _TEXT),
            {"role": "assistant", "content": "circle"},
            {"role": "user", "content": "how many objects are there ?"},
        ],
        "max_completion_tokens": 3,
        "n": 1,
        "user": "someone",
        "metadata": {"a": "b"},
        "response_format": {"type": "text"},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "logprobs": False,
        "tools": [],
        "tool_choice": "none",
    },
]
_VIDEOS: list[dict[str, Any]] = [
    {"model": MODEL, "video_url": {"url": "CLIP"}, "format": "safetensors"},
    {"model": MODEL, "video_url": {"url": "STILL"}, "format": "npz"},
    {"model": MODEL, "input_video": {"url": "DAMAGED"}},
]
