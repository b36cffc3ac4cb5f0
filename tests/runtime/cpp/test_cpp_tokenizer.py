"""The C++ tokenizer against Hugging Face's on random Unicode, and its streams against the Python runtime's."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cpp_build import ROOT, probe
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.random_tokenizer import _SPLIT as QWEN2_SPLIT
from runtime.llm.sampling import Sampling
from runtime.prompt.tokenizer import TextStream

STRINGS = 12_000

# Characters of every kind: letters of scripts that compose and reorder, digits, spaces, signs, emoji with joiners.
_RANGES = [
    (0x20, 0x7F), (0x20, 0x7F), (0x09, 0x0E), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x590), (0x590, 0x700), (0x900, 0xE00),
    (0x1100, 0x1200), (0x1E00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2C00), (0x3000, 0x3400), (0x4E00, 0x5000), (0xAC00, 0xAD00),
    (0xF900, 0xFB00), (0xFB00, 0x10000), (0x1D15E, 0x1D165), (0x1F300, 0x1F700), (0x20000, 0x20100), (0x2F800, 0x2FA20),
]  # fmt: skip
_PIECES = [
    "'s",
    "'LL",
    "don't",
    "  ",
    "\r\n",
    "\n\n",
    "1234",
    "é",
    "e\u0301",
    "\u200d",
    "\ufe0f",
    "İ",
    "ſ",
    "<|im_end|>",
    "<|im_end",
    "…",
    "½",
    "Ⅷ",
    "ⓐ",
    "x_y",
]


def random_strings(count: int) -> list[str]:
    rng = random.Random(5)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 24)):
            if rng.random() < 0.25:
                parts.append(rng.choice(_PIECES))
                continue
            character = chr(rng.randrange(*rng.choice(_RANGES)))
            parts.append(character if _is_old(character) else " ")
        texts.append("".join(parts))
    return texts


def _is_old(character: str) -> bool:
    """Whether every library's Unicode tables know the character: Hugging Face normalises by those of Unicode 9."""
    if unicodedata.category(character) in ("Cn", "Cs"):
        return False
    return not unicodedata.combining(character) or unicodedata.ucd_3_2_0.category(character) != "Cn"


@pytest.fixture(scope="module")
def qwen2_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE under Qwen2's rules, trained on this project's own text so that merges have something to do."""
    from tokenizers import AddedToken, Regex

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([path.read_text() for path in ROOT.glob("*.md")] + random_strings(300), trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens(
        [AddedToken("<tool>", single_word=True), AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True)]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def demo_tokenizer(bundle_path: Path) -> Path:
    return bundle_path / "llm" / "tokenizer.json"


@pytest.mark.parametrize("which", ["qwen2_like", "demo_tokenizer"])
def test_ids_are_those_of_hugging_face(which: str, cpp: Path, request: pytest.FixtureRequest):
    file = request.getfixturevalue(which)
    reference, texts = Tokenizer.from_file(str(file)), random_strings(STRINGS)
    texts += ["", " ", "a" * 20_000, "<tool>", "x<tool>", "a <left> b", "a <right>  b", " <left><right> "]
    expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
    for text, got, ids in zip(texts, probe(cpp, "tokenize", texts, file), expected, strict=True):
        assert got == ids, ascii(text)


@pytest.mark.parametrize("which", ["qwen2_like", "demo_tokenizer"])
def test_streams_are_those_of_python(which: str, cpp: Path, request: pytest.FixtureRequest):
    file = request.getfixturevalue(which)
    reference = Tokenizer.from_file(str(file))
    rng, size = random.Random(7), reference.get_vocab_size()
    answers = [[rng.randrange(size + 3) for _ in range(rng.randrange(30))] for _ in range(500)]
    answers += [reference.encode(text, add_special_tokens=False).ids for text in random_strings(500)]
    prompt = SimpleNamespace(decode=lambda ids: reference.decode(ids, skip_special_tokens=True))
    for ids, got in zip(answers, probe(cpp, "stream", answers, file), strict=True):
        stream = TextStream(prompt)  # type: ignore[arg-type]
        assert got == [*(stream.push(token) for token in ids), stream.finish()], ids


def test_parts_that_are_unknown_here_are_refused_by_name(cpp: Path, qwen2_like: Path, tmp_path: Path):
    from cpp_build import subprocess

    good = json.loads(qwen2_like.read_text())
    for change, named in {
        "normalizer": ({"type": "Nmt"}, "Nmt"),
        "pre_tokenizer": ({"type": "Metaspace"}, "Metaspace"),
        "model": ({"type": "Unigram", "vocab": {}}, "Unigram"),
        "decoder": ({"type": "WordPiece"}, "decoder"),
    }.items():
        file = tmp_path / f"{change}.json"
        file.write_text(json.dumps(good | {change: named[0]}))
        command = [cpp / "tests" / "gridpool-probe", "tokenize", file]
        done = subprocess.run(command, input='"x"\n', capture_output=True, text=True)
        (answer,) = map(json.loads, done.stdout.splitlines())
        assert named[1] in answer["error"] and answer["error"].startswith(f"{file} is no tokenizer (")


def test_sampling_draws_what_numpy_draws(cpp: Path):
    rng = np.random.default_rng(3)
    cases = [
        [rng.normal(0, 3, 200).astype(np.float32).tolist(), temperature, top_p, seed, 40]
        for temperature, top_p, seed in [
            (0.7, 0.9, 0),
            (1.0, 1.0, 1),
            (2.5, 0.5, 123456789),
            (0.1, 0.99, 2**63),
            (100.0, 1.0, 2**32),
        ]
    ]
    for (logits, temperature, top_p, seed, count), ids in zip(cases, probe(cpp, "sample", cases), strict=True):
        choose = Sampling(temperature, top_p, seed).chooser()
        assert ids == [choose(np.array(logits, np.float32)) for _ in range(count)]
