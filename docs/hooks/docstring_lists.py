"""A griffe extension for the API reference: lists in docstrings, `name    what it is` a line, become Markdown lists, and `<` stays one."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ITEM = re.compile(r"(?P<indent> *)(?P<names>[A-Za-z_][\w.,/ ]*?) {2,}(?P<text>\S.*)")


class DocstringLists(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_lists(obj.docstring.value)


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
