"""Options: a field of a frozen dataclass, with its help and limits, is the one definition of an option.

    @dataclass(frozen=True)
    class BenchOptions:
        rounds: int = option(5, "rounds that count", at_least=1)
        engine: EngineOptions = nested(EngineOptions())

        def __post_init__(self) -> None:
            check_limits(self)

    add_options(parser, BenchOptions)                    # --rounds, and --device, --threads … of the engine
    options_from_args(BenchOptions, parser.parse_args(argv))
    options_from_values(BenchOptions, {"rounds": "7"})   # of a configuration, whose values may be text

A field that neither `option` nor `nested` made is not on the command line.
"""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from plugins.spec import Limits
from runtime.core.errors import UsageError, UserError, nearest

_T = TypeVar("_T")
_KEY = "option"
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Option(Limits):
    """What an option has beyond the field's name, type and default; see `option`."""

    help: str = ""
    flag: str | None = ""
    metavar: str | None = None
    choices: Collection[str] = ()
    scale: int = 1
    parse: Callable[[str], Any] | None = None
    env: str | None = None

    def expected(self, value: Any) -> str:
        """What `value` should be instead; "" where it is within the limits."""
        if isinstance(value, str) and self.choices and value not in self.choices:
            return f"one of {', '.join(self.choices)}"
        return super().expected(value) if isinstance(value, (int, float)) else ""


def option(default: Any, help: str = "", **more: Any) -> Any:
    """A dataclass field that is an option of the command line.

    flag       default: the field's name with dashes; None: the option can be set in Python only
    metavar    default: N for an int, the choices, or the flag's name in capitals
    choices    the values that there are
    at_least, above, at_most    limits of a number; `above` itself is excluded
    scale      the command line's number is multiplied by this: 1 << 20 for an option in MiB of a field in bytes
    parse      text -> value, default: the field's type; its ValueError says what was expected
    env        an environment variable to read where the command line does not have the option
    """
    return field(default=default, metadata={_KEY: Option(help=help, **more)})


def secret_option(help: str, **more: Any) -> Any:
    """An option that is a key; `env` is where it is out of sight of ps."""
    return option(None, f"{help}; or in the environment as {more['env']}, out of sight of ps", parse=_secret, **more)


def nested(default: Any, without: Collection[str] = ()) -> Any:
    """A dataclass field that is itself a frozen dataclass with options; those in `without` are not offered."""
    return field(default=default, metadata={_KEY: frozenset(without)})


def check_limits(options: Any, error: type[UserError] = UsageError) -> None:
    """Raise `error` for a field outside its limits, also of nested options. For `__post_init__`."""
    for entry in fields(options):
        about, value = entry.metadata.get(_KEY), getattr(options, entry.name)
        expected = about.expected(value) if isinstance(about, Option) else ""
        if expected:
            raise error(f"{entry.name} is {value!r}, expected {expected}")
        if isinstance(about, frozenset):
            check_limits(value, error)


def add_options(parser: argparse.ArgumentParser, kind: type, without: Collection[str] = ()) -> None:
    """Add an argument for each option of the dataclass `kind`. Those that a command line leaves out are not in the namespace."""
    for found in _options(kind, without):
        settings: dict[str, Any] = {"action": "store_true"}
        if found.type is not bool:
            metavar = found.about.metavar or ("N" if found.type is int else None)
            settings = {"type": found.value, "metavar": metavar, "choices": found.about.choices or None}
            settings |= {"action": "append"} if found.is_tuple else {}
        parser.add_argument(found.flag, default=argparse.SUPPRESS, help=found.help, **settings)


def options_from_args(kind: type[_T], args: argparse.Namespace) -> _T:
    """The instance that a command line describes. UsageError for values that don't fit together, or of a bad environment variable."""
    values = dict(vars(args))
    for found in _options(kind):
        variable = found.about.env
        if variable and found.name not in values and variable in os.environ:
            values[found.name] = _named(f"the environment variable {variable}", found.value, os.environ[variable])
    return _instance(kind, values)


def options_from_values(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """The instance that {name: value or its text} describes; the names are those of the command line, with underscores.

    UsageError for a name that does not exist or a value that it does not take.
    """
    options = {found.name: found for found in _options(kind)}
    for name in values:
        if name not in options:
            raise UsageError(f"no argument {name}{nearest(name, options)}")
    return _instance(kind, {name: _named(name, options[name].configured, value) for name, value in values.items()})


@dataclass(frozen=True)
class _Found:
    """An option of a dataclass or of one nested in it; `type` of one value where the field is a tuple or may be None."""

    flag: str
    about: Option
    type: Any
    is_tuple: bool
    default: Any

    @property
    def name(self) -> str:
        return _key(self.flag)

    @property
    def help(self) -> str:
        if "default" in self.about.help or self.default in (None, False, (), ""):
            return self.about.help
        default = self.default // self.about.scale if self.about.scale > 1 else self.default
        return f"{self.about.help} (default: {f'{default:g}' if isinstance(default, float) else default})".lstrip()

    def value(self, text: str) -> Any:
        """One value from its text, within its limits; the choices are left to argparse and `check_limits`."""
        try:
            value = (self.about.parse or self.type)(text)
        except ValueError as error:
            problem = f"got {text!r}, {error}" if self.about.parse else f"invalid {self.type.__name__} value: {text!r}"
            raise argparse.ArgumentTypeError(problem) from None
        value = value * self.about.scale if self.about.scale > 1 else value
        expected = "" if self.about.choices else self.about.expected(value)
        if expected:
            raise argparse.ArgumentTypeError(f"got {text}, expected {expected}")
        return value

    def configured(self, value: Any) -> Any:
        """The field's value from a configuration's."""
        if value is None:
            if self.default is not None:
                raise argparse.ArgumentTypeError("got no value")
            return None
        if self.type is bool:
            if str(value).lower() not in _TRUTH:
                raise argparse.ArgumentTypeError(f"got {value!r}, expected true or false")
            return _TRUTH[str(value).lower()]
        if self.is_tuple:
            return [self.value(text) for text in (value.split(",") if isinstance(value, str) else value)]
        return self.value(str(value))


def _options(base: Any, without: Collection[str] = ()) -> Iterator[_Found]:
    """base: a dataclass, whose defaults are its attributes, or an instance of one."""
    hints = typing.get_type_hints(base if isinstance(base, type) else type(base))
    for name, about in _offered(base, without):
        if not isinstance(about, Option):
            yield from _options(getattr(base, name), about)
            continue
        hint = hints[name]
        kind = (typing.get_args(hint) or (hint,))[0]
        yield _Found(_flag(name, about), about, kind, typing.get_origin(hint) is tuple, getattr(base, name))


def _instance(base: Any, values: Mapping[str, Any], without: Collection[str] = ()) -> Any:
    changed: dict[str, Any] = {}
    for name, about in _offered(base, without):
        if not isinstance(about, Option):
            changed[name] = _instance(getattr(base, name), values, about)
        elif (key := _key(_flag(name, about))) in values:
            changed[name] = tuple(values[key]) if isinstance(values[key], list) else values[key]
    return base(**changed) if isinstance(base, type) else replace(base, **changed)


def _offered(base: Any, without: Collection[str]) -> Iterator[tuple[str, Option | frozenset[str]]]:
    """The fields that are options or contain some: their names, and what `option` or `nested` said."""
    for entry in fields(base):
        about = entry.metadata.get(_KEY)
        if about is not None and getattr(about, "flag", "") is not None and entry.name not in without:
            yield entry.name, about


def _flag(name: str, about: Option) -> str:
    return about.flag or "--" + name.replace("_", "-")


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _secret(text: str) -> str:
    if not (text.isascii() and text.isprintable() and text.strip()):
        raise argparse.ArgumentTypeError("the key is empty or not plain ASCII; use another one")
    return text


def _named(name: str, convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except (argparse.ArgumentTypeError, TypeError) as error:
        raise UsageError(f"{name}: {error}") from None
