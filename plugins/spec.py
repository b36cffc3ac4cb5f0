"""The grammar of compression specs: text -> stages with checked options -> text. Standard library only.

    spec    stage[+stage...]          ptg:sizes=4/4/4,strides=2/4/8+nsp:window=2
    stage   name[:key=value,...]      a preset's name without options stands for its stages
    value   a number, or numbers with / between them where the option is a list

In: a spec or a preset. Out: `Parsed` stages, or the expanded text with every option written out, as the manifest stores it. The
options of a stage are a frozen dataclass whose fields are its grammar. Any fault is a one-line SpecError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from operator import ge, gt, le
from typing import Any

from plugins.errors import SpecError, nearest


@dataclass(frozen=True)
class Limits:
    """The range of a number; `above` itself is excluded."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def expected(self, value: Any) -> str:
        """What `value` should be instead, e.g. "at least 1 and at most 8"; "" where it is in the range."""
        checks = [("at least", ge, self.at_least), ("more than", gt, self.above), ("at most", le, self.at_most)]
        limits = [(met(value, limit), f"{words} {limit:g}") for words, met, limit in checks if limit is not None]
        return "" if all(met for met, _ in limits) else " and ".join(text for _, text in limits)


def option(default: Any, help: str, only_if_set: bool = False, **limits: float) -> Any:
    """A dataclass field that is a stage's option. limits: of `Limits`, for its value or each value of its list.

    only_if_set: the expanded spec writes the option only where it differs from the default (for options that few specs use).
    """
    return field(default=default, metadata={"help": help, "limits": Limits(**limits), "only_if_set": only_if_set})


@dataclass(frozen=True)
class Parsed:
    """One stage of a spec: its name in the grammar, and its options dataclass (None for a stage of others=True)."""

    name: str
    options: Any


def parse(text: str, options: Mapping[str, type], presets: Mapping[str, str] = {}, others: bool = False) -> list[Parsed]:
    """The stages of a spec. options: {stage: options dataclass}; presets: {name: spec}; others: accept other stages unread."""
    if not text.strip():
        raise SpecError(f"the compression spec is empty; expected stage[:key=value,...][+...] or a preset{nearest('', presets)}")
    stages: list[Parsed] = []
    for part in text.split("+"):
        name, colon, arguments = (piece.strip() for piece in part.partition(":"))
        if name in options:
            stages.append(Parsed(name, _options(name, options[name], arguments, bool(colon))))
        elif others:
            stages.append(Parsed(name, None))
        elif name not in presets:
            raise SpecError(f'no compression stage or preset "{name}" in "{text}"{nearest(name, [*options, *presets])}')
        elif colon:
            raise SpecError(f'preset "{name}" takes no options, got "{part.strip()}"; write it out: {presets[name]}')
        else:
            stages += parse(presets[name], options)
    return stages


def unique_names(stages: Sequence[str]) -> list[str]:
    """The stages' names in a graph and a manifest: a second "nsp" is "nsp_2"."""
    counts = [stages[: i + 1].count(name) for i, name in enumerate(stages)]
    return [name if count == 1 else f"{name}_{count}" for name, count in zip(stages, counts, strict=True)]


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


def check_ranges(stage: str, options: Any) -> None:
    """SpecError where a value of an options dataclass is out of its field's range, as NaN is."""
    for f in fields(options):
        value = getattr(options, f.name)
        for item in value if isinstance(value, tuple) else (value,):
            if expected := f.metadata["limits"].expected(item):
                expected = f"expected {_noun(_number_type(f))} {expected}"
                raise SpecError(f'stage "{stage}": {f.name}={format_value(value)} is out of range; {expected}')


def _format_stage(stage: Parsed) -> str:
    values = [(f, getattr(stage.options, f.name)) for f in fields(stage.options)]
    written = [f"{f.name}={format_value(v)}" for f, v in values if not f.metadata["only_if_set"] or v != f.default]
    return f"{stage.name}:{','.join(written)}" if written else stage.name


def _options(stage: str, kind: type, text: str, expected: bool) -> Any:
    known = {f.name: f for f in fields(kind)}
    values: dict[str, Any] = {}
    for item in text.split(",") if text or expected else []:
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not key or not value:
            raise SpecError(f'stage "{stage}": "{item.strip()}" is not an option; expected key=value')
        if key not in known:
            raise SpecError(f'stage "{stage}" has no option "{key}"{nearest(key, known)}')
        if key in values:
            raise SpecError(f'stage "{stage}" has option "{key}" twice; give it once')
        values[key] = _value(stage, known[key], value)
    options = kind(**values)
    check_ranges(stage, options)
    return options


def _value(stage: str, f: Field, text: str) -> Any:
    number = _number_type(f)
    is_list = isinstance(f.default, tuple)
    try:
        values = tuple(number(item) for item in (text.split("/") if is_list else [text]))
    except ValueError:
        raise SpecError(f'stage "{stage}": {f.name}={text} is not {_noun(number)}{" or a list with / between" * is_list}') from None
    return values if is_list else values[0]


def _number_type(f: Field) -> type:
    return type(f.default[0] if isinstance(f.default, tuple) else f.default)


def _noun(number: type) -> str:
    return "a whole number" if number is int else "a number"
