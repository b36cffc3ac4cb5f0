"""Raw HTTP for tests: what no client library would send."""

from __future__ import annotations

import json
import socket
from typing import Any

from http_server import Running


class Raw:
    """A connection to a server; `answer` reads to the end of the response."""

    def __init__(self, server: Running | str, seconds: float = 60):
        url = server if isinstance(server, str) else server.url
        self.socket = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), seconds)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes | str) -> Raw:
        self.socket.sendall(data.encode() if isinstance(data, str) else data)
        return self

    def answer(self) -> tuple[int, bytes]:
        """(status, body); (0, b"") where the server just hung up."""
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                chunk = self.socket.recv(65536)
                if not chunk:
                    return 0, b""
                data += chunk
            head, _, body = data.partition(b"\r\n\r\n")
            length = next((int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            while len(body) < length:
                body += self.socket.recv(65536)
        except ConnectionError:
            return 0, b""
        return int(head.split()[1]), body

    def closed(self) -> bool:
        """Whether the server hangs up, before this side's patience ends."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True


def head(path: str = "/v1/chat/completions", method: str = "POST", **headers: Any) -> str:
    lines = {"Host": "localhost", "Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"


def post(body: Any, path: str = "/v1/chat/completions", **headers: Any) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(path, Content_Length=len(content), **headers).encode() + content
