"""The smallest input with the same fault: delta debugging on bytes, and on the values of JSON."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from typing import Any


def minimised(data: bytes, fails: Callable[[bytes], bool], seconds: float = 60.0) -> bytes:
    """A short input for which `fails` is still true; `data` itself if time runs out at once."""
    end = time.monotonic() + seconds
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, fails, end)
    return _json(value, data, fails, end)


def _bytes(data: bytes, fails: Callable[[bytes], bool], end: float) -> bytes:
    size = max(1, len(data) // 2)
    while time.monotonic() < end:
        at, smaller = 0, False
        while at < len(data) and time.monotonic() < end:
            candidate = data[:at] + data[at + size :]
            if candidate and fails(candidate):
                data, smaller = candidate, True
            else:
                at += size
        if size == 1 and not smaller:
            break
        size = max(1, size // 2)
    return data


def _json(value: Any, data: bytes, fails: Callable[[bytes], bool], end: float) -> bytes:
    """Drop whatever is not needed, large things first, then halve the texts that are left."""
    value = json.loads(data)
    smaller = True
    while smaller:
        smaller = False
        for path in sorted(_paths(value), key=lambda path: -len(json.dumps(_at(value, path)))):
            for change in (_without, _shorter):
                candidate = change(value, path)
                if time.monotonic() > end:
                    return data
                if candidate is not None and fails(text := json.dumps(candidate).encode()):
                    value, data, smaller = candidate, text, True
                    break
    return data


def _paths(value: Any, so_far: tuple = ()) -> Iterator[tuple]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*so_far, key)
        yield from _paths(value[key], (*so_far, key))


def _at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def _without(value: Any, path: tuple) -> Any:
    """A copy without what is at `path`; None where nothing is any more."""
    copied = copy.deepcopy(value)
    try:
        holder = _at(copied, path[:-1])
        del holder[path[-1]]
    except (KeyError, IndexError, TypeError):
        return None
    return copied


def _shorter(value: Any, path: tuple) -> Any:
    """A copy with the first part of a text or list at `path`; None where it is short or gone."""
    copied = copy.deepcopy(value)
    try:
        holder, key = _at(copied, path[:-1]), path[-1]
        if not isinstance(holder[key], str | list) or len(holder[key]) < 2:
            return None
        holder[key] = holder[key][: len(holder[key]) // 2]
    except (KeyError, IndexError, TypeError):
        return None
    return copied
