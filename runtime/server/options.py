"""The server's options, including those of its engine and LLM. The command line and the Ray application are generated from them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from runtime.core.errors import UsageError
from runtime.core.options import check_limits, nested, option, secret_option
from runtime.engine import EngineOptions, backend_option
from runtime.llm.remote import LLMOptions
from runtime.media.limits import DecodeLimits

MIB = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`: it is localhost or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


@dataclass(frozen=True)
class ServerOptions:
    """Sizes in bytes, times in seconds."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "0: any free one", at_least=0, at_most=65_535)
    api_key: str | None = secret_option("what clients must send", env="GRIDPOOL_API_KEY")
    llm: LLMOptions = nested(LLMOptions())
    batch: int = option(8, "answers decoded together", above=0)
    queue: int = option(32, "requests that may wait beyond those, then 429", at_least=0)
    deadline: float = option(300.0, "seconds for a request, waiting included", metavar="S", above=0)
    drain: float = option(30.0, "seconds for running requests at SIGTERM", metavar="S", above=0)
    max_body: int = option(96 * MIB, "largest request", flag="--max-body-mib", scale=MIB, above=0)
    max_media: int = option(64 * MIB, "largest clip, fetched or decoded from base64", flag="--max-media-mib", scale=MIB, above=0)
    limits: DecodeLimits = nested(DecodeLimits())
    decode_seconds: float = option(30.0, "for the decoding of one clip", flag="--max-decode-seconds", metavar="S", above=0)
    cache: int = option(256 * MIB, "visual tokens kept for further questions", flag="--cache-mib", scale=MIB, at_least=0)
    media_hosts: tuple[str, ...] = option((), "fetch https clips from here", flag="--allow-media-host", metavar="HOST")
    media_paths: tuple[Path, ...] = option((), "read file: clips from here", flag="--allow-media-path", metavar="DIR")
    backend: str = backend_option()
    engine: EngineOptions = nested(EngineOptions())
    header_seconds: float = option(10.0, "for a request's headers, from the connection or the first byte on", flag=None, above=0)
    body_seconds: float = option(20.0, "for a request's body, plus one for each half MiB received", flag=None, above=0)
    grace_seconds: float = option(0.5, "that a stream waits for its first token or an error before it begins", flag=None)
    fetch_seconds: float = option(30.0, "for one fetched clip, from first to last byte", flag=None, above=0)

    @property
    def memory(self) -> int:
        """Bytes for bodies and clips of all requests together."""
        return 4 * self.max_body

    @property
    def keyless_loopback(self) -> bool:
        """Whether anybody on this machine may ask without a key; web pages in its browsers must then be kept out."""
        return self.api_key is None and is_loopback(self.host)

    def __post_init__(self) -> None:
        check_limits(self)
        if self.api_key is not None and not self.api_key.strip():
            raise UsageError("the API key is empty; set one, or leave the option out for a server without a key")
        for folder in self.media_paths:
            if not folder.is_dir():
                raise UsageError(f"--allow-media-path {folder} is not a directory")
