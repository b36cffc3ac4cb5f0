"""A griffe extension for the API reference.

Lists in docstrings, `name    what it is` a line, become Markdown lists, and `<` stays one. A dataclass field made by `option(default,
help, ...)` shows its default in the signature and its help in a list under the class.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_ITEM = re.compile(r"(?P<indent> *)(?P<names>[A-Za-z_][\w.,/ ]*?) {2,}(?P<text>\S.*)")


class DocstringLists(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_lists(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        options = []
        for attribute in cls.attributes.values():
            call = attribute.value
            if isinstance(call, griffe.ExprCall) and str(call.function) == "option":
                default, help_text = call.arguments[:2]
                attribute.value = default
                options.append(f"- `{attribute.name}`: {as_lists(ast.literal_eval(str(help_text)))}")
        if options and cls.docstring:
            cls.docstring.value += "\n\n" + "\n".join(options)


def as_lists(text: str) -> str:
    """`text`, with `name  what it is` lines as list items; a line indented deeper continues its item."""
    lines: list[str] = []
    indent = None  # of the list that the last line was in
    for line in text.splitlines():
        item = _ITEM.fullmatch(line)
        if item:
            lines += ([] if indent is not None else [""]) + [f"- `{item['names']}`: {item['text']}"]
            indent = len(item["indent"])
        elif indent is not None and line[: indent + 1].isspace():
            lines.append(f"  {line.strip()}")
        else:
            lines += ([""] if indent is not None and line else []) + [line]
            indent = None
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", "\n".join(lines))
