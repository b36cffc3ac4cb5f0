"""`run`: one question about one video, to a local or a remote LLM; the answer streams."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from runtime.chat import AskOptions, VideoChat
from runtime.cli.arguments import EngineChoice, add_bundle, open_with_engine
from runtime.core.options import add_options, options_from_args
from runtime.core.progress import log
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
    if not llm.is_local:
        RemoteChat.check(args.video, args.question)
    bundle, backend, engine = open_with_engine(args)
    chat: Any  # a VideoChat or a RemoteChat
    if llm.is_local:
        prompt = Prompt(bundle) if bundle.has_llm else None
        if prompt:  # a bad request is refused before gigabytes of weights are loaded
            VideoChat.check(prompt, args.video, args.question)
        chat = VideoChat.open(bundle, backend, engine, prompt)
    else:
        chat = RemoteChat.open(bundle, llm, backend, engine)
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
