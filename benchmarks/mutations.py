"""Single-point changes of a Python source, for benchmarks/mutate.py.

In: a file's name and text. Out: every `Mutation` of it, in the order of the text; `is_a_change` says which compile and differ from the
source as a program. Left alone is what no test should pin: docstrings, messages (f-strings, the arguments of `raise`, of exceptions and
of what prints), annotations, help texts, assertions, and what runs only for a type checker; and the arguments of what kills processes or
removes files, since a wrong one would do that to other processes and files.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

_COMPARISONS: dict[type, tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
}  # fmt: skip
_ARITHMETIC: dict[type, tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip
_OPPOSITES = {"min": "max", "amin": "amax", "argmin": "argmax", "any": "all", "floor": "ceil", "minimum": "maximum"}
_OPPOSITES |= {new: old for old, new in _OPPOSITES.items()}
_PRINTING = {"print", "say", "log", "emit", "warn", "warning", "info", "debug", "step"}
_SYMMETRIC = {"isinstance", "issubclass", "min", "max", "zip", "range"}
_TEXTS = {"help", "metadata", "description", "doing"}
_ASSERTING = {"strict"}  # zip(…, strict=True) is an assertion that lengths are equal
_HARMFUL = {"kill", "killpg", "rmtree", "unlink", "remove", "rmdir", "send_signal"}


@dataclass(frozen=True)
class Mutation:
    """One change: bytes [start, end) of the file become `text`.

    before, after: the line with the change, stripped; key: names it across runs, also when lines move; line: counted from 1;
    statement: first and last line of the statement around it, of a compound one without its body.
    """

    file: str
    line: int
    operator: str
    before: str
    after: str
    start: int
    end: int
    text: str
    statement: tuple[int, int]
    key: str = ""

    @property
    def change(self) -> str:
        return f"{self.before} -> {self.after}"

    def apply(self, source: str) -> str:
        content = source.encode()
        return (content[: self.start] + self.text.encode() + content[self.end :]).decode()


def mutations(file: str, source: str) -> list[Mutation]:
    """All changes of a source."""
    seen: Counter[str] = Counter()
    result = []
    for found in _Finder(file, source).walk(ast.parse(source)):
        name = f"{file}\n{found.operator}\n{found.change}"
        seen[name] += 1
        result.append(replace(found, key=hashlib.sha256(f"{name}\n{seen[name]}".encode()).hexdigest()[:16]))
    return result


def is_a_change(mutation: Mutation, source: str) -> bool:
    """Whether the changed source compiles and is another program."""
    try:
        return ast.dump(ast.parse(mutation.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


class _Finder:
    def __init__(self, file: str, source: str):
        self.file, self.content = file, source.encode()
        self.lines = self.content.split(b"\n")
        self.statement = (1, 1)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)

    def walk(self, node: ast.AST) -> Iterator[Mutation]:
        if _is_left_alone(node):
            return
        kind = type(node).__name__
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            self.statement = (node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno)
        yield from getattr(self, f"_{kind.lower()}", lambda _: ())(node)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _called(node) in _HARMFUL):
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from self.walk(child)

    def _compare(self, node: ast.Compare) -> Iterator[Mutation]:
        operands = [node.left, *node.comparators]
        for left, right, op in zip(operands, operands[1:], node.ops, strict=False):
            yield from self._between("comparison", left, right, *_COMPARISONS[type(op)])

    def _binop(self, node: ast.BinOp) -> Iterator[Mutation]:
        if type(node.op) in _ARITHMETIC and not any(_is_text(side) for side in (node.left, node.right)):
            yield from self._between("arithmetic", node.left, node.right, *_ARITHMETIC[type(node.op)])

    def _boolop(self, node: ast.BoolOp) -> Iterator[Mutation]:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from self._between("and/or", left, right, *words)

    def _unaryop(self, node: ast.UnaryOp) -> Iterator[Mutation]:
        start, _ = self._span(node)
        if isinstance(node.op, ast.Not):
            yield self._change("removed not", start, start + 3, "")
        elif isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            yield self._change("removed minus", start, start + 1, "")

    def _constant(self, node: ast.Constant) -> Iterator[Mutation]:
        value = node.value
        if isinstance(value, bool):
            yield self._change("constant", *self._span(node), str(not value))
        elif isinstance(value, int):
            yield self._change("constant", *self._span(node), str(value + 1))
        elif isinstance(value, float):
            yield self._change("constant", *self._span(node), repr(value * 2 if value else 1.0))

    def _return(self, node: ast.Return) -> Iterator[Mutation]:
        value = node.value
        if value is None or isinstance(value, ast.Constant):
            return
        start, end = self._span(value)
        logical = isinstance(value, ast.Compare) or (isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.Not))
        text = self.content[start:end].decode()
        yield self._change("return", start, end, f"not ({text})" if logical else "None")

    def _expr(self, node: ast.Expr) -> Iterator[Mutation]:
        if isinstance(node.value, (ast.Call, ast.Await)):
            yield self._removed(node)

    def _assign(self, node: ast.Assign) -> Iterator[Mutation]:
        if all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets):
            yield self._removed(node)

    def _augassign(self, node: ast.AugAssign) -> Iterator[Mutation]:
        yield self._removed(node)

    def _delete(self, node: ast.Delete) -> Iterator[Mutation]:
        yield self._removed(node)

    def _raise(self, node: ast.Raise) -> Iterator[Mutation]:
        yield self._removed(node)

    def _continue(self, node: ast.Continue) -> Iterator[Mutation]:
        yield self._removed(node)

    def _break(self, node: ast.Break) -> Iterator[Mutation]:
        yield self._removed(node)

    def _if(self, node: ast.If | ast.IfExp) -> Iterator[Mutation]:
        for text in ("True", "False"):
            yield self._change("condition", *self._span(node.test), text)

    _ifexp = _if

    def _call(self, node: ast.Call) -> Iterator[Mutation]:
        name = _called(node)
        if name in _HARMFUL:
            return
        if name in _OPPOSITES:
            _, end = self._span(node.func)
            yield self._change("opposite function", end - len(name), end, _OPPOSITES[name])
        plain = not any(isinstance(arg, ast.Starred) or _is_text(arg) for arg in node.args[:2])
        if len(node.args) > 1 and plain and name not in _SYMMETRIC:
            (first, first_end), (second, end) = (self._span(arg) for arg in node.args[:2])
            one, between, two = self.content[first:first_end], self.content[first_end:second], self.content[second:end]
            yield self._change("swapped arguments", first, end, (two + between + one).decode())
        before = node.args[-1] if node.args else None
        for keyword in node.keywords:
            if before is not None and keyword.arg and keyword.arg not in _TEXTS | _ASSERTING:
                yield self._change("dropped argument", self._span(before)[1], self._span(keyword.value)[1], "")
            before = keyword.value
        if name == "range":
            last = node.args[min(1, len(node.args) - 1)]
            start, end = self._span(last)
            yield self._change("off by one", start, end, f"{self.content[start:end].decode()} - 1")

    def _between(self, operator: str, left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator[Mutation]:
        start, end = self._span(left)[1], self._span(right)[0]
        at = self.content.find(old.encode(), start, end)
        if at >= 0:
            yield self._change(operator, at, at + len(old), new)

    def _removed(self, node: ast.stmt) -> Mutation:
        return self._change("removed statement", *self._span(node), "pass")

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _change(self, operator: str, start: int, end: int, text: str) -> Mutation:
        number = self.content.count(b"\n", 0, start)
        first, last = self.starts[number], self.content.find(b"\n", end)
        last = len(self.content) if last < 0 else last
        before = self.content[first:last].decode()
        after = (self.content[first:start] + text.encode() + self.content[end:last]).decode()
        return Mutation(self.file, number + 1, operator, _one_line(before), _one_line(after), start, end, text, self.statement)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, (ast.JoinedStr, ast.Assert)):
        return True
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or (isinstance(node.value, ast.Call) and _called(node.value) in _PRINTING)
    if isinstance(node, ast.keyword):
        return node.arg in _TEXTS or (node.arg in _ASSERTING and getattr(node.value, "value", None) is True)
    return isinstance(node, ast.Call) and _called(node).endswith(("Error", "missing_package"))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _one_line(text: str) -> str:
    return " ".join(text.split())
