"""The server's options and their defaults; the command line reads them from here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from runtime.core.errors import UsageError
from runtime.media.clip import DecodeLimits

MIB = 1 << 20


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine for itself alone: localhost, or an address of loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


@dataclass(frozen=True)
class ServerOptions:
    """host, port           where to listen; anything but loopback without a key warns
    api_key              what clients send as bearer token; None: no check
    llm, llm_model       "local", or the URL of an OpenAI-compatible server that takes prompt embeddings, and its model
    llm_api_key          the key for that server
    llm_dtype            "float16" or "bfloat16", of the embeddings sent to it
    batch                answers that are decoded together
    queue                requests accepted beyond those, before 429
    deadline             seconds that a request may take once its body is there, waiting included
    drain                seconds that running requests get after SIGTERM
    max_body             bytes of a request
    max_media            bytes of one clip, fetched or decoded from base64
    header_seconds       for the head of a request, from the connection or the first byte on
    body_seconds         for a request's body, and a second more for each half MiB that came
    grace_seconds        that a stream waits for its first token, or an error with a status of its own, before it begins
    decode_seconds       for the decoding of one clip
    cache                bytes of visual tokens that are kept for further questions
    media_hosts          hosts from which https clips may be fetched; none by default
    media_paths          directories from which file: clips may be read; none by default
    fetch_seconds        for one fetched clip, from first to last byte
    limits               what a clip may ask of the decoder
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    llm: str = "local"
    llm_model: str | None = None
    llm_api_key: str | None = None
    llm_dtype: str = "float16"
    batch: int = 8
    queue: int = 32
    deadline: float = 300.0
    drain: float = 30.0
    max_body: int = 96 * MIB
    max_media: int = 64 * MIB
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    grace_seconds: float = 0.5
    decode_seconds: float = 30.0
    cache: int = 256 * MIB
    media_hosts: tuple[str, ...] = ()
    media_paths: tuple[Path, ...] = ()
    fetch_seconds: float = 30.0
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    @property
    def memory(self) -> int:
        """Bytes of bodies and clips that all requests together may hold."""
        return 4 * self.max_body

    @property
    def keyless_loopback(self) -> bool:
        """Whether anybody on this machine may ask: then web pages that its browsers show must not."""
        return self.api_key is None and is_loopback(self.host)

    def __post_init__(self) -> None:
        positive = ("batch", "max_body", "max_media", "deadline", "drain", "fetch_seconds", "header_seconds", "body_seconds")
        for name in (*positive, "decode_seconds"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name.replace('_', '-')} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.port <= 65_535:  # the system would listen on what is left of it in 16 bits
            raise UsageError(f"port is {self.port}, expected 0 to 65535")
        if self.limits.pixels <= 0 or self.limits.seconds <= 0:
            raise UsageError("max-clip-seconds and max-clip-pixels must be more than 0")
        if self.queue < 0 or self.cache < 0:
            raise UsageError("queue and cache can't be negative")
        if self.api_key is not None and not self.api_key.strip():
            raise UsageError("the API key is empty; give one, or leave the option out for a server without a key")
        if self.llm != "local" and not self.llm_model:
            raise UsageError(f"--llm {self.llm} needs --llm-model, the model's name there")
        for folder in self.media_paths:
            if not folder.is_dir():
                raise UsageError(f"--allow-media-path {folder} is not a directory")
