"""A byte-level BPE tokenizer of any vocabulary size in Qwen2's form, its special tokens at the ids that a config asks for.

In: the id of the first special token. Out: the content of `tokenizer.json`. No vocabulary is downloaded, so the merges are
made up: bytes first, then pairs of bytes, then pairs of pairs, until every id below the special ones has a token. A file of the
real size takes the real time to load, and any UTF-8 text survives encoding and decoding; only the split into tokens is not Qwen2's.
"""

from __future__ import annotations

from itertools import product

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")  # consecutive ids, in Qwen2's order
BYTES = 256

# How Qwen2 splits text before merging: contractions, words with one leading sign, single digits, punctuation, line ends, spaces.
_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizer_json(first_special_id: int) -> dict:
    """`tokenizer.json` with ids 0 .. first_special_id - 1 for byte tokens and merges, the special tokens from there on."""
    tokens = _byte_tokens()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    for left, right in _merges(tokens):
        if len(vocabulary) == first_special_id:
            break
        vocabulary[left + right] = len(vocabulary)
        merges.append([left, right])
    if len(vocabulary) != first_special_id:
        raise ValueError(f"the first special id is {first_special_id}, expected {BYTES} to {BYTES + BYTES**2 + BYTES**4}")
    # The special tokens are in the vocabulary too: the library reads an added token's id from there.
    vocabulary |= {token: first_special_id + index for index, token in enumerate(SPECIAL_TOKENS)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
            for token in SPECIAL_TOKENS
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _byte_tokens() -> list[str]:
    """A printable character for each byte, as byte-level BPE (GPT-2) spells them: its own where it has one, else from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    character = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(BYTES) if byte not in character]
    character |= {byte: chr(BYTES + index) for index, byte in enumerate(others)}
    return [character[byte] for byte in [*printable, *others]]


def _merges(tokens: list[str]):
    """(left, right) of ever longer tokens; all results differ."""
    yield from product(tokens, tokens)
    pairs = [left + right for left, right in product(tokens, tokens)]
    yield from product(pairs, pairs)
