"""The JSON schema (draft 7) of `manifest.json`: made from the records, shipped as `schema.json`, checked by Python and C++ alike.

    python -m runtime.bundle.schema     rewrite schema.json after changing the records

It uses only keywords that small validators support. Two rules are stricter than JSON schema's: an integer has no decimal point (3.0
is a number), and a number is finite. `runtime.bundle.files` checks the sizes and hashes of files.
"""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from runtime.bundle.graphs import DECODER, SPLIT, VISION, file_of
from runtime.bundle.manifest import SCHEMA_VERSION, Limits, LLMInfo, Manifest, PromptInfo, key_of, without_none
from runtime.core.errors import BundleError, missing_package

FILE = Path(__file__).with_name("schema.json")
_FILES = {
    "anyOf": [{"required": [file_of(VISION)]}, {"required": [file_of(DECODER)]}],
    "dependencies": {file_of(one): [file_of(other) for other in SPLIT] for one in SPLIT},
}
_SCALARS = {int: "integer", float: "number", str: "string"}
_SHOWN = 80  # characters of a refused value, and of what was expected


def manifest_schema() -> dict[str, Any]:
    """The schema of the manifest, as the records give it."""
    made = _object(Manifest)
    made["properties"]["files"] |= _FILES
    described = {"llm": _object(LLMInfo), "prompt": _object(PromptInfo), "limits": _object(Limits)}  # where there is an LLM
    version = {"type": "integer", "minimum": 1, "maximum": SCHEMA_VERSION, "description": "a reader refuses a later one"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "manifest.json",
        "type": "object",
        "required": ["schema_version", *made["required"]],
        "properties": {"schema_version": version, **made["properties"]},
        "if": {"properties": {"files": {"required": [file_of(DECODER)]}}},
        "then": {"properties": described},
        "else": {"properties": {"llm": {"enum": [{}], "description": f"files has no {file_of(DECODER)}"}}},
    }


def check(values: Any, what: str, part: str = "", remedy: str = "export the bundle again") -> None:
    """BundleError, one line that begins with `what`, for the first of JSON `values` that the schema refuses.

    part: the key of the manifest that the values belong to, "" for the whole manifest.
    """
    for error in _validator(part).iter_errors(values):
        raise BundleError(f"{what}{_fault(error)}; {remedy}")


@cache
def _validator(part: str) -> Any:
    try:
        import jsonschema
    except ImportError:
        raise missing_package("jsonschema", "opening a bundle", "runtime") from None
    numbers = {
        "integer": lambda _, value: type(value) is int and abs(value) <= sys.float_info.max,  # limits are checked of numbers alone
        "number": lambda _, value: type(value) in (int, float) and abs(value) <= sys.float_info.max,
    }
    strict = jsonschema.validators.extend(
        jsonschema.Draft7Validator, type_checker=jsonschema.Draft7Validator.TYPE_CHECKER.redefine_many(numbers)
    )
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    return strict(schema["properties"][part] if part else schema)


def _fault(error: Any) -> str:
    """Where, what was found there, and which keyword of the schema it breaks."""
    where = "".join(map(_step, error.absolute_path)).lstrip(".")
    where = f": {where}" if where else ""
    if error.validator == "required":
        return f"{where} lacks {', '.join(name for name in error.validator_value if name not in error.instance)}"
    meaning = f" ({error.schema['description']})" if "description" in error.schema else ""
    return f"{where} is {_cut(error.instance)}, expected {error.validator} {_cut(error.validator_value)}{meaning}"


def _step(key: str | int) -> str:
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if key.isidentifier() else f"[{_cut(key)}]"


def _cut(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _object(record: Any) -> dict[str, Any]:
    """The schema of a record."""
    types, properties = get_type_hints(record), {}
    for of in fields(record):
        choices = without_none(types[of.name])
        section = choices != [types[of.name]] and of.default is MISSING  # a record or {}, which `manifest_schema` tells apart
        made = {"type": "object"} if section else _value(choices[0], of.metadata.get("limits", {}))
        properties[key_of(of)] = {"description": of.metadata["description"], **made}
    return {"type": "object", "required": [key_of(of) for of in fields(record) if of.default is MISSING], "properties": properties}


def _value(kind: Any, limits: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value of type `kind`, its scalars within `limits`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _object(kind)
    if origin is Literal:
        return {"type": sorted({_SCALARS[type(one)] for one in arguments}), "enum": list(arguments)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1], limits)}
    if origin is tuple:
        length = {} if arguments[-1] is ... else {"minItems": len(arguments), "maxItems": len(arguments)}
        return {"type": "array", "items": _value(arguments[0], limits), **length}
    if arguments:
        return {"anyOf": [_value(one, limits) for one in arguments]}
    return {"type": _SCALARS[kind], **limits}


if __name__ == "__main__":
    FILE.write_text(json.dumps(manifest_schema(), indent=1) + "\n", encoding="utf-8")
