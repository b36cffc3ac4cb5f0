"""The spec grammar: text -> stages with checked options -> text.

    spec    stage[+stage...]          ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2
    stage   name[:key=value,...]      a preset's name without options stands for its stages
    value   a number, or numbers with / between them where the option is a list

In: a spec or a preset. Out: `Parsed` stages, or the expanded text with every option written out, which is what the manifest
stores. The options of a stage are a frozen dataclass; the parser is built from its fields, so a new stage brings its own grammar.
Every fault is a one-line SpecError.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from runtime.core.errors import SpecError, nearest


def option(
    default: Any,
    help: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    only_if_set: bool = False,
) -> Any:
    """A dataclass field that is a stage's option, with the range its value (or each value of its list) must lie in.

    only_if_set: the expanded spec writes the option only where it differs from the default (for what most specs never use).
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most}
    return field(default=default, metadata={"help": help, "limits": limits, "only_if_set": only_if_set})


@dataclass(frozen=True)
class Parsed:
    """One stage of a spec: its registry name and an instance of its options dataclass."""

    name: str
    options: Any


def parse(text: str, options: Mapping[str, type], presets: Mapping[str, str]) -> list[Parsed]:
    """The stages of a spec. options: {stage: options dataclass}; presets: {name: spec}."""
    if not text.strip():
        raise SpecError(
            f"the compression spec is empty; expected stage[:key=value,...][+stage...] or a preset{nearest('', presets)}"
        )
    stages: list[Parsed] = []
    for part in text.split("+"):
        name, colon, arguments = (piece.strip() for piece in part.partition(":"))
        if name in options:
            stages.append(Parsed(name, _options(name, options[name], arguments, bool(colon))))
        elif name not in presets:
            raise SpecError(f'no compression stage or preset "{name}" in "{text}"{nearest(name, [*options, *presets])}')
        elif colon:
            raise SpecError(f'preset "{name}" takes no options, got "{part.strip()}"; write it out: {presets[name]}')
        else:
            stages += parse(presets[name], options, {})
    return stages


def format(stages: list[Parsed]) -> str:
    """The expanded text of parsed stages; parsing it gives the same stages."""
    return "+".join(_format_stage(stage) for stage in stages)


def format_value(value: Any) -> str:
    """An option's value as the grammar writes it."""
    if isinstance(value, tuple):
        return "/".join(map(format_value, value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value).replace("e+", "e")
    return str(value)


def _format_stage(stage: Parsed) -> str:
    written = [
        f"{f.name}={format_value(getattr(stage.options, f.name))}"
        for f in fields(stage.options)
        if not f.metadata["only_if_set"] or getattr(stage.options, f.name) != f.default
    ]
    return f"{stage.name}:{','.join(written)}" if written else stage.name


def _options(stage: str, kind: type, text: str, expected: bool) -> Any:
    known = {f.name: f for f in fields(kind)}
    values: dict[str, Any] = {}
    for item in text.split(",") if text or expected else []:
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not key or not value:
            raise SpecError(f'stage "{stage}": "{item.strip()}" is no option; expected key=value')
        if key not in known:
            raise SpecError(f'stage "{stage}" has no option "{key}"{nearest(key, known)}')
        if key in values:
            raise SpecError(f'stage "{stage}" has option "{key}" twice; give it once')
        values[key] = _value(stage, known[key], value)
    return kind(**values)


def _value(stage: str, f: Field, text: str) -> Any:
    assert f.default is not MISSING, "every option has a default"
    is_list = isinstance(f.default, tuple)
    number = type(f.default[0]) if is_list else type(f.default)
    items = text.split("/") if is_list else [text]
    values = tuple(_number(stage, f, number, item) for item in items)
    return values if is_list else values[0]


def _number(stage: str, f: Field, kind: type, text: str) -> int | float:
    noun = "a whole number" if kind is int else "a number"
    try:
        value = kind(text)
    except ValueError:
        raise SpecError(f'stage "{stage}": {f.name}={text} is not {noun}') from None
    limits = f.metadata["limits"]
    fits = (
        not math.isnan(value)
        and (limits["at_least"] is None or value >= limits["at_least"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["at_most"] is None or value <= limits["at_most"])
    )
    if not fits:
        words = [f"{word.replace('_', ' ')} {limit:g}" for word, limit in limits.items() if limit is not None]
        raise SpecError(f'stage "{stage}": {f.name}={text} is out of range; expected {noun} {" and ".join(words)}')
    return value
