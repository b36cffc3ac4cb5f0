"""The diagram of docs/architecture.md, drawn from the imports of the sources.

    python docs/hooks/architecture_diagram.py      write it into the page

Boxes are packages and modules of the source tree, grouped and in the order in which data passes through them; thick arrows are the data. A
thin arrow from A to B means that B imports A, where no other path of arrows says so already. What the frames import of each other is in
their titles. While the site is built, a page that differs from the sources is a warning, and so an error under `--strict`.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- begin diagram -->\n", "<!-- end diagram -->"

# In the order of the data: a box, and the packages and modules in it. Every one of the tree must be in exactly one box.
BOXES = {
    "export": {
        "families": "families checkpoint weights",
        "compress": "compress frames",
        "stages": "stages decoder",
        "trace": "trace",
        "surgeon": "surgeon",
        "quantize": "quantize",
        "scenes": "scenes",
        "verify": "verify reference",
        "tensorrt": "tensorrt",
        "plan": "__init__ options plan listing",
        "components": "vision llm component",
        "pipeline": "__main__ pipeline",
        "demo": "demo",
    },
    "runtime": {
        "core": "__init__ core",
        "bundle": "bundle",
        "media": "media",
        "engine": "engine",
        "vision": "vision",
        "prompt": "prompt",
        "llm": "llm",
        "chat": "chat watch remote_chat",
        "tools": "tools",
        "server": "server",
        "cluster": "cluster",
        "cli": "cli __main__",
    },
    "plugins": {
        "spec": "spec op errors schedule reference",
        "plan": "plan",
        "kernel": "__init__ driver kernel",
        "tensorrt": "tensorrt",
    },
}
DATA = """
    checkpoint[(checkpoint)] export.families export.compress export.stages export.trace export.surgeon export.quantize export.verify
    export.verify export.components export.pipeline directory[(bundle directory)]
    directory runtime.bundle runtime.engine runtime.vision runtime.llm runtime.chat answer([answer])
    video([video]) runtime.media runtime.vision
    question([question]) runtime.prompt runtime.llm
"""

Edges = set[tuple[str, str]]


def diagram() -> str:
    """The Mermaid text."""
    edges = imports()
    lines = ["flowchart TB"]
    for top, boxes in BOXES.items():
        others = sorted({_top(imported) for importer, imported in edges if _top(importer) == top != _top(imported)})
        title = f"{top}, which imports {' and '.join(others)}" if others else top
        lines += [f'  subgraph {top}["{title}"]', *(f"    {top}.{box}[{box}]" for box in boxes), "  end"]
    data: Edges = set()
    for path in DATA.strip().splitlines():
        stops = re.findall(r"\w[\w.]*(?:[(\[]+[^)\]]*[)\]]+)?", path)
        lines.append("  " + " ==> ".join(stops))
        data |= set(zip(stops[1:], stops[:-1], strict=True))
    inside = {(importer, imported) for importer, imported in edges if _top(importer) == _top(imported)}
    lines += [f"  {imported} -.-> {importer}" for importer, imported in sorted(reduced(inside) - data)]
    return "\n".join(lines)


def imports() -> Edges:
    """(box that imports, box that is imported) of the source tree; ValueError for a package or module that is in no box."""
    box_of = {}
    for top, boxes in BOXES.items():
        for box, units in boxes.items():
            box_of |= {f"{top}.{unit}": f"{top}.{box}" for unit in units.split()}
    edges: Edges = set()
    for top in BOXES:
        for file in sorted((ROOT / top).rglob("*.py")):
            importer = _box(".".join(file.relative_to(ROOT).with_suffix("").parts), box_of)
            edges |= {
                (importer, _box(name, box_of)) for name in _imported(ast.parse(file.read_text())) if name.split(".")[0] in BOXES
            }
    return {(importer, imported) for importer, imported in edges if importer != imported}


def reduced(edges: Edges) -> Edges:
    """Those edges that no longer path of other edges says already."""

    def reaches(start: str, goal: str, without: tuple[str, str]) -> bool:
        waiting, seen = [start], set()
        while waiting:
            at = waiting.pop()
            for step in edges - {without}:
                if step[0] == at and step[1] not in seen:
                    seen.add(step[1])
                    waiting.append(step[1])
        return goal in seen

    return {edge for edge in edges if not reaches(*edge, without=edge)}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == PAGE.name and written(markdown) != markdown:
        warning = f"{PAGE.name}: the diagram is not that of the sources; run python {Path(__file__).relative_to(ROOT)}"
        logging.getLogger("mkdocs.hooks.architecture_diagram").warning(warning)
    return markdown


def written(page: str) -> str:
    """The page with the diagram of the sources between its markers."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}```mermaid\n{diagram()}\n```\n{END}{rest.partition(END)[2]}"


def _top(name: str) -> str:
    return name.partition(".")[0]


def _box(name: str, box_of: dict[str, str]) -> str:
    """The box of a module, or of a name imported from a top-level package itself."""
    unit = ".".join(name.split(".")[:2])
    if (
        unit not in box_of
        and not (ROOT / unit.replace(".", "/")).with_suffix(".py").exists()
        and not (ROOT / unit.replace(".", "/")).is_dir()
    ):
        unit = f"{_top(name)}.__init__"
    if unit not in box_of:
        raise ValueError(f"{unit} is in no box of {Path(__file__).name}: add it at its place in the order of the data")
    return box_of[unit]


def _imported(node: ast.AST) -> Iterator[str]:
    """Modules that the code imports, inside functions too, but not for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imported(child)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
