"""A stand-in for vLLM with --enable-prompt-embeds: the same wire format and rules, decoding by transformers' own Qwen2.

It shares no code with the runtime: torch.load reads the embeddings, transformers renders the chat template and generates.
`faults` makes it misbehave: {"status": [429, 503], "cut": True, "newline": True, "stays": True}; the last is
silent after the first piece of an answer until its reader goes away.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from export.demo import CHECKPOINT


class RemoteLLMServer:
    """`requests`: the bodies that came; `bytes`: their sizes; `reader_left`: set once the reader of an answer went away."""

    def __init__(self, faults: dict[str, Any]):
        self.faults, self.requests, self.bytes, self.reader_left = faults, [], [], threading.Event()
        self.tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()

    def prompt(self, messages: list[dict[str, Any]]) -> torch.Tensor:
        """[1, S, D] embeddings of the chat-template prompt with the embeddings parts in place."""
        embeds, plain = [], []
        for message in messages:
            parts = message["content"] if isinstance(message["content"], list) else [{"type": "text", "text": message["content"]}]
            for part in parts:
                if part["type"] == "prompt_embeds":
                    embeds.append(torch.load(io.BytesIO(base64.b64decode(part["data"], validate=True)), weights_only=True).float())
            kept = [{"type": "video"} if part["type"] == "prompt_embeds" else part for part in parts]
            if self.faults.get("newline"):
                kept = [{**p, "text": p["text"] + " ."} if p["type"] == "text" else p for p in kept]
            plain.append({"role": message["role"], "content": kept})
        text = self.tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        marker = self.tokenizer.convert_tokens_to_ids("<video>")
        embed = self.model.get_input_embeddings()
        rows = [embeds.pop(0) if token == marker else embed(torch.tensor([token])) for token in ids]
        return torch.cat(rows)[None]

    @torch.inference_mode()
    def answer(self, body: dict[str, Any]) -> tuple[int, list[int]]:
        prompt = self.prompt(body["messages"])
        end, past, ids = self.tokenizer.convert_tokens_to_ids("<|im_end|>"), None, []
        step = prompt
        for _ in range(body.get("max_tokens", 16)):
            out = self.model.model.language_model(inputs_embeds=step, past_key_values=past, use_cache=True)
            past = out.past_key_values
            token = int(self.model.lm_head(out.last_hidden_state[:, -1]).argmax())
            if token == end:
                break
            ids.append(token)
            step = self.model.get_input_embeddings()(torch.tensor([[token]]))
        return prompt.shape[1], ids

    def handler(self) -> type[BaseHTTPRequestHandler]:
        remote = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                body = json.loads(raw)
                remote.requests.append(body | {"_authorization": self.headers.get("Authorization")})
                remote.bytes.append(len(raw))
                statuses = remote.faults.get("status")
                if statuses:
                    self.refuse(statuses.pop(0))
                    return
                prompt_tokens, ids = remote.answer(body)
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    for number in range(len(ids)):
                        text = remote.tokenizer.decode(ids[number : number + 1])
                        self.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
                        if remote.faults.get("stays"):
                            if not self.connection.recv(1):
                                remote.reader_left.set()
                            return
                    if remote.faults.get("cut"):
                        return
                    finish = "length" if len(ids) == body.get("max_tokens") else "stop"
                    self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
                    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(ids)}
                    self.event({"choices": [], "usage": usage})
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    remote.reader_left.set()

            def event(self, data: dict[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
                self.wfile.flush()

            def refuse(self, status: int) -> None:
                content = json.dumps({"error": {"message": f"refused with {status}", "type": "x", "code": status}}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@contextlib.contextmanager
def remote_llm(**faults: Any) -> Iterator[tuple[str, RemoteLLMServer]]:
    """(url with /v1, the server)."""
    remote = RemoteLLMServer(faults)
    server = ThreadingHTTPServer(("127.0.0.1", 0), remote.handler())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", remote
    server.shutdown()
    server.server_close()
