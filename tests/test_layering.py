"""Imports go one way: export -> runtime -> plugins, downwards inside runtime, and never in a circle.

Imports inside functions count; those under `if TYPE_CHECKING:` don't. `from package import name` reads the submodule `name` where
there is one, else the package itself.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The packages and loose modules of runtime/, from the top down: each imports from its own line's entry and from lines below it.
LAYERS = """
    __main__
    cli
    cluster
    server
    tools
    watch remote_chat
    chat
    vision llm
    media engine prompt
    bundle
    core
"""

Imports = dict[str, set[str]]


@pytest.fixture(scope="module")
def imports() -> Imports:
    """{module: modules of export, runtime and plugins that it imports}."""
    listed = subprocess.run(
        ["git", "ls-files", "export", "runtime", "plugins"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    paths = [Path(name) for name in listed.stdout.splitlines() if name.endswith(".py") and (ROOT / name).exists()]
    return read_imports({module_of(path): (ROOT / path).read_text(encoding="utf-8") for path in paths})


def test_plugins_import_nothing_of_the_project_and_runtime_nothing_of_export(imports: Imports) -> None:
    allowed = {"plugins": {"plugins"}, "runtime": {"runtime", "plugins"}, "export": {"export", "runtime", "plugins"}}
    wrong = {(module, other) for module, others in imports.items() for other in others if _top(other) not in allowed[_top(module)]}
    assert wrong == set()


def test_inside_runtime_imports_go_down(imports: Imports) -> None:
    assert upward(imports) == set()


def test_every_part_of_runtime_has_a_layer(imports: Imports) -> None:
    parts = {part_of(module) for module in imports if _top(module) == "runtime"} - {None}
    assert parts == {part for line in LAYERS.split("\n") for part in line.split()}


def test_no_module_imports_itself_through_others(imports: Imports) -> None:
    assert cycles(imports) == set()


def test_planted_imports_are_found(imports: Imports) -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import export.demo\n"
    assert read_imports({"runtime.core.new": source}, imports)["runtime.core.new"] == set()
    planted = read_imports({"runtime.core.new": "def load():\n    from runtime.chat import Chat\n"}, imports)
    assert planted["runtime.core.new"] == {"runtime.chat"}
    assert upward(planted) == {("runtime.core.new", "runtime.chat")}
    planted["runtime.chat"] = planted["runtime.chat"] | {"runtime.core.new"}
    assert any({"runtime.chat", "runtime.core.new"} <= cycle for cycle in cycles(planted))


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str | None:
    """The package or loose module of runtime/ that `module` belongs to; None for runtime itself and other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "runtime" and len(parts) > 1 else None


def read_imports(sources: dict[str, str], known: Imports | None = None) -> Imports:
    """`known`, with what `sources` ({module: text}) import."""
    imports = dict(known or {})
    modules = set(imports) | set(sources)
    for module, source in sources.items():
        imports[module] = {name for node in _statements(ast.parse(source)) for name in _named(node, modules)} - {module}
    return imports


def upward(imports: Imports) -> set[tuple[str, str]]:
    """(module, import) where the import stands in a higher layer of runtime, or beside the module in its own layer."""
    height = {part: number for number, line in enumerate(reversed(LAYERS.split("\n"))) for part in line.split()}
    found = set()
    for module, others in imports.items():
        here = part_of(module)
        for other in others:
            there = part_of(other)
            if here and there and here != there and height[there] >= height[here]:
                found.add((module, other))
    return found


def cycles(imports: Imports) -> set[frozenset[str]]:
    """The strongly connected components of more than one module."""
    reach = {module: _reachable(module, imports) for module in imports}
    groups = {
        frozenset(other for other in reach[module] if module in reach[other]) for module in imports if module in reach[module]
    }
    return groups


def _reachable(start: str, imports: Imports) -> set[str]:
    found: set[str] = set()
    queue = [start]
    while queue:
        for other in imports.get(queue.pop(), ()):
            if other not in found:
                found.add(other)
                queue.append(other)
    return found


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _statements(child)


def _named(node: ast.Import | ast.ImportFrom, modules: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    else:
        assert node.level == 0 and node.module, "imports are absolute"
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if name in modules or node.module in modules:
                yield name if name in modules else node.module


def _top(module: str) -> str:
    return module.partition(".")[0]
