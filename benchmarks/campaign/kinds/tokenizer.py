"""Damaged tokenizer.json and chat templates, read as a question is: prompt, literal text, and back to text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmarks.campaign import mutate_bytes, mutate_json
from benchmarks.campaign.kinds.inputs import InputKind, bundle_copy, replace
from benchmarks.campaign.kinds.manifest import small_bundle
from benchmarks.campaign.run import Run, warm
from benchmarks.campaign.sandbox import Case

QUESTION = "what is the 12th 'thing' ?\n  İé\u0301 日本 🎬"
_WORDS = (
    "BPE",
    "WordLevel",
    "Unigram",
    "WordPiece",
    "ByteLevel",
    "NFC",
    "Lowercase",
    "Whitespace",
    "Sequence",
    "Split",
    "Regex",
    "(?i)(a+)+$",
)
_TEMPLATE = (
    "{%",
    "%}",
    "{{",
    "}}",
    "messages",
    "for",
    "endfor",
    "if",
    "loop.index",
    "range(10**9)",
    "* 10**8",
    "|tojson",
    "raise_exception('x')",
)


class Tokenizer(InputKind):
    name = "tokenizer"

    def __init__(self) -> None:
        self.bundle = Path()
        self.tokenizers: list[Any] = []
        self.template = ""

    def prepare(self, run: Run) -> None:
        warm("jinja2", "tokenizers")
        from export.demo import CHECKPOINT

        self.bundle = small_bundle(run)
        self.tokenizers = [json.loads((folder / "tokenizer.json").read_text()) for folder in (self.bundle / "llm", CHECKPOINT)]
        self.template = (self.bundle / "llm" / "chat_template.jinja").read_text()

    def make(self, run: Run, index: int) -> Case:
        rng = run.rng(self.name, index)
        if rng.random() < 0.25:
            return Case(_template(rng, self.template).encode(errors="surrogatepass"), ".jinja")
        return Case(mutate_json.mutated(rng, rng.choice(self.tokenizers), _WORDS), ".json")

    def call(self, case: Case, folder: Path) -> int:
        from runtime.core.errors import exit_code

        bundle, name = bundle_copy(self.bundle, folder), "chat_template.jinja" if case.suffix == ".jinja" else "tokenizer.json"
        before = (bundle / "llm" / name).read_bytes()
        replace(bundle / "llm" / name, case.data)
        rehash(bundle, f"llm/{name}")
        try:
            return exit_code(lambda: _ask(bundle))
        finally:
            replace(bundle / "llm" / name, before)


def rehash(bundle: Path, name: str) -> None:
    """Make the manifest say what a replaced file is now: its author meant it so."""
    from runtime.core.files import sha256_of

    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"size": (bundle / name).stat().st_size, "sha256": sha256_of(bundle / name)}
    replace(bundle / "manifest.json", json.dumps(manifest).encode())


def _ask(bundle: Path) -> None:
    from runtime.bundle import Bundle
    from runtime.prompt import Prompt
    from runtime.prompt.tokenizer import TextStream

    prompt = Prompt(Bundle.open(bundle))
    ids = prompt.ids(QUESTION)
    prompt.ids("<|im_end|> what")
    prompt.template.prefix_and_suffix()
    stream = TextStream(prompt.tokenizer)
    for token in [*ids.before, *ids.after][:20]:
        stream.push(token)
    stream.finish()


def _template(rng: random.Random, text: str) -> str:
    if rng.random() < 0.3:
        return mutate_bytes.mutated(rng, text.encode()).decode(errors="replace")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, to = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        way = rng.randrange(3)
        if way == 0:
            text = text[:at] + rng.choice(_TEMPLATE) + text[at:]
        elif way == 1:
            text = text[:at] + text[min(to, at + 40) :]
        else:
            text = text[:at] + text[at : min(to, at + 40)] + text[at:]
    return text
