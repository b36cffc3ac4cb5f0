"""The command line of `serve`: `add_arguments(parser)` and `options_of(args)`; defaults are ServerOptions'."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.core.errors import UsageError
from runtime.media.clip import DecodeLimits
from runtime.server.options import MIB, ServerOptions

if TYPE_CHECKING:
    from runtime.llm.remote import RemoteOptions

_KEY, _LLM_KEY = "GRIDPOOL_API_KEY", "GRIDPOOL_LLM_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = ServerOptions()
    parser.add_argument("more", type=Path, nargs="*", metavar="BUNDLE", help="more bundles; a request's model names one")
    parser.add_argument("--host", default=default.host)
    parser.add_argument("--port", type=int, default=default.port, help="0: any free one (default %(default)s)")
    parser.add_argument("--api-key", help=f"what clients must send; or in the environment as {_KEY}, out of sight of ps")
    add_llm_arguments(parser)
    parser.add_argument("--batch", type=int, default=default.batch, help="answers decoded together (default %(default)s)")
    parser.add_argument("--queue", type=int, default=default.queue, help="requests that may wait beyond those, then 429")
    parser.add_argument(
        "--deadline", type=float, default=default.deadline, metavar="S", help="seconds for a request, waiting included"
    )
    parser.add_argument("--drain", type=float, default=default.drain, metavar="S", help="seconds for running requests at SIGTERM")
    parser.add_argument("--max-body-mib", type=int, default=default.max_body // MIB, help="largest request")
    parser.add_argument("--max-media-mib", type=int, default=default.max_media // MIB, help="largest clip")
    limits = default.limits
    parser.add_argument("--max-clip-seconds", type=float, default=limits.seconds, metavar="S", help="longest clip")
    parser.add_argument("--max-clip-pixels", type=int, default=limits.pixels, metavar="N", help="largest frame, width times height")
    parser.add_argument(
        "--max-decode-seconds", type=float, default=default.decode_seconds, metavar="S", help="for the decoding of one clip"
    )
    parser.add_argument("--cache-mib", type=int, default=default.cache // MIB, help="visual tokens kept for further questions")
    parser.add_argument("--allow-media-host", action="append", default=[], metavar="HOST", help="fetch https clips from here")
    parser.add_argument(
        "--allow-media-path", action="append", default=[], type=Path, metavar="DIR", help="read file: clips from here"
    )


def add_llm_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the LLM is; `run` has them too."""
    default = ServerOptions()
    parser.add_argument(
        "--llm", default=default.llm, metavar="local|URL", help="an OpenAI-compatible server that takes prompt_embeds"
    )
    parser.add_argument("--llm-model", metavar="NAME", help="the model's name there")
    parser.add_argument("--llm-api-key", help=f"its key; or in the environment as {_LLM_KEY}")
    parser.add_argument("--llm-dtype", choices=["float16", "bfloat16"], default=default.llm_dtype, help="of the embeddings sent")


def remote_of(args: argparse.Namespace) -> RemoteOptions:
    """The remote LLM that --llm names; UsageError for values that make no sense."""
    from runtime.llm.remote import RemoteOptions

    if not args.llm_model:
        raise UsageError(f"--llm {args.llm} needs --llm-model, the model's name there")
    return RemoteOptions(args.llm, args.llm_model, _secret(args.llm_api_key, _LLM_KEY), args.llm_dtype)


def options_of(args: argparse.Namespace) -> ServerOptions:
    """UsageError for values out of range."""
    return ServerOptions(
        host=args.host,
        port=args.port,
        api_key=_secret(args.api_key, _KEY),
        llm=args.llm,
        llm_model=args.llm_model,
        llm_api_key=_secret(args.llm_api_key, _LLM_KEY),
        llm_dtype=args.llm_dtype,
        batch=args.batch,
        queue=args.queue,
        deadline=args.deadline,
        drain=args.drain,
        max_body=args.max_body_mib * MIB,
        max_media=args.max_media_mib * MIB,
        decode_seconds=args.max_decode_seconds,
        cache=args.cache_mib * MIB,
        limits=DecodeLimits(pixels=args.max_clip_pixels, seconds=args.max_clip_seconds),
        media_hosts=tuple(args.allow_media_host),
        media_paths=tuple(args.allow_media_path),
    )


def _secret(given: str | None, variable: str) -> str | None:
    value = given if given is not None else os.environ.get(variable)
    if value is not None and not (value.isascii() and value.isprintable() and value.strip()):
        raise UsageError(f"the key in {variable} or on the command line is empty or not plain ASCII; give one that is")
    return value
