"""Damage that keeps JSON valid, mostly: values of other types and sizes, keys dropped, renamed or doubled, subtrees exchanged."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

from benchmarks.campaign import mutate_bytes

STRINGS = (
    "",
    " ",
    "\0",
    "\n",
    "a" * 5000,
    "\ud800",
    "é\u0301",
    "../../etc/passwd",
    "/",
    "NaN",
    "-1",
    "<|im_end|>",
    "<video>",
    "{{ x }}",
)
_DEEP = "nested more deeply than json.dumps can write"
SCALARS = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)),
    *(0.5, -0.0, 1e-320, 1e300, float("inf"), float("-inf"), float("nan")),
)


def mutated(rng: random.Random, value: Any, words: Sequence[str] = ()) -> bytes:
    """The text of a damaged copy of `value`; `words` are strings that mean something where it is read."""
    if rng.random() < 0.12:
        return mutate_bytes.mutated(rng, json.dumps(value).encode())
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        value = _once(rng, value, words)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    return text.replace(f'"{_DEEP}"', "[" * 3000 + "]" * 3000).encode(errors="surrogatepass")


def _once(rng: random.Random, value: Any, words: Sequence[str]) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.01:
        return _another(rng, value, words)
    holder, key = rng.choice(places)
    way = rng.randrange(10)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[rng.choice([*holder, *words, *STRINGS])] = holder[key] if rng.random() < 0.5 else holder.pop(key)
    elif way == 1:
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way == 2:
        other, name = rng.choice(places)
        holder[key] = copy.deepcopy(other[name])
    else:
        holder[key] = _another(rng, holder[key], words)
    return value


def _another(rng: random.Random, value: Any, words: Sequence[str]) -> Any:
    """A replacement for `value`, more often than not of the same type."""
    near = rng.random() < 0.5
    if near and type(value) in (int, float):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, float(value), str(value)))
    if near and isinstance(value, str):
        return rng.choice((value + rng.choice(STRINGS), value[: len(value) // 2], value.upper(), value * 3, *words, *STRINGS))
    if near and isinstance(value, list):
        return rng.choice((value * 2, value[1:], [], [*value, rng.choice(SCALARS)], value[::-1], value * 100))
    if near and isinstance(value, dict):
        return rng.choice(({}, value | {rng.choice(STRINGS): rng.choice(SCALARS)}, [value], list(value)))
    scalar = rng.choice(SCALARS)
    nested = rng.choice(([scalar], {"a": scalar}, [[[scalar]]], _DEEP))
    return rng.choice((scalar, scalar, scalar, scalar, rng.choice(STRINGS), rng.choice([*words, ""]), nested, [], {}))


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found
