"""`run`: one question about one video, to a local or a remote LLM; the answer streams."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runtime.chat import AskOptions, VideoChat
from runtime.cli.arguments import EngineChoice, add_bundle, open_bundle
from runtime.core.options import add_options, options_from_args
from runtime.core.progress import log
from runtime.engine import placed
from runtime.llm.remote import LLMOptions
from runtime.prompt import Prompt
from runtime.remote_chat import RemoteChat


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("video", type=Path)
    parser.add_argument("question")
    for options in (AskOptions, LLMOptions, EngineChoice):
        add_options(parser, options)


def run(args: argparse.Namespace) -> int:
    ask, llm = options_from_args(AskOptions, args), options_from_args(LLMOptions, args)
    on = options_from_args(EngineChoice, args)
    chat: Any  # a VideoChat or a RemoteChat
    if llm.is_local:
        bundle = open_bundle(args)
        prompt = Prompt(bundle) if bundle.has_llm else None
        if prompt:  # a bad request is refused before gigabytes of weights are loaded
            VideoChat.check(prompt, args.video, args.question)
        chat = VideoChat.open(bundle, on.backend, placed(bundle, on.backend, on.engine), prompt)
    else:
        RemoteChat.check(args.video, args.question)
        bundle = open_bundle(args)
        chat = RemoteChat.open(bundle, llm, on.backend, placed(bundle, on.backend, on.engine))
    pieces = chat.ask(args.video, args.question, ask)
    for note in chat.answer.notes:
        log(note)
    for piece in pieces:
        if not args.json:
            print(piece, end="", flush=True)
    print(json.dumps(chat.answer.as_dict()) if args.json else "")
    for warning in () if llm.is_local else chat.warnings:
        log(f"warning: {warning}")
    return 0
