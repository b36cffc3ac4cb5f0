"""JSON objects as frozen dataclasses: a field is a key of the same name, its type says which values the key takes.

`key` gives a field its description and limits, from which `runtime.bundle.schema` makes a JSON schema; `read` and `written` go
between records and JSON. A key whose field has a default may be absent, and is not written while the field is None; a record
that may be None and has no default is the object {} then.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, field, fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints


def key(description: str, default: Any = MISSING, name: str = "", **limits: Any) -> Any:
    """A dataclass field. name: of the key, where it can't be the field's; limits: JSON schema's keywords for a scalar or an item."""
    return field(default=default, metadata={"description": description, "name": name, "limits": limits})


def key_of(of: Field) -> str:
    """The key that a field stands for."""
    return of.metadata.get("name") or of.name


def without_none(kind: Any) -> list[Any]:
    """The alternatives of a type, None left out: `int | None` -> [int]."""
    return [one for one in get_args(kind) if one is not NoneType] if NoneType in get_args(kind) else [kind]


def read(kind: Any, value: Any) -> Any:
    """The record of type `kind` that a JSON value, which passed the schema, describes; keys without a field are ignored."""
    if len(choices := without_none(kind)) == 1 and choices != [kind]:
        return None if value == {} else read(choices[0], value)
    if isinstance(kind, type) and is_dataclass(kind):
        types = get_type_hints(kind)
        present = {one.name: key_of(one) for one in fields(kind) if key_of(one) in value}
        return kind(**{name: read(types[name], value[of]) for name, of in present.items()})
    if get_origin(kind) is dict:
        return {name: read(get_args(kind)[1], one) for name, one in value.items()}
    if get_origin(kind) is tuple:
        return tuple(read(get_args(kind)[0], one) for one in value)
    return tuple(value) if isinstance(value, list) else value


def written(value: Any) -> Any:
    """A record, or records in tuples and dicts, as JSON values; keys in the order of the fields."""
    if is_dataclass(value) and not isinstance(value, type):
        found = ((one, getattr(value, one.name)) for one in fields(value))
        return {key_of(one): {} if v is None else written(v) for one, v in found if v is not None or one.default is MISSING}
    if isinstance(value, dict):
        return {name: written(one) for name, one in value.items()}
    return [written(one) for one in value] if isinstance(value, tuple | list) else value
