"""Which golden cases the source of a test loads, read from the literals that it names them by."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase


def loaded(source: str, names: Iterable[str]) -> set[str]:
    """Those of the names that the source loads.

    Counted are `golden_cases.names("PREFIX")`, `golden_cases.case(f"..._{x}")`, `glob("..._*.npz")`
    and a string that is a whole name; a prefix in a variable is not seen.
    """
    patterns = set(_patterns(ast.parse(source)))
    return {name for name in names if any(fnmatchcase(name, p) for p in patterns)}


def _patterns(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "*" not in node.value:
            yield node.value  # a whole name, wherever it stands: matches nothing else
        elif isinstance(node, ast.Call) and node.args:
            yield from _pattern_of_call(_name(node.func), node.args[0])


def _pattern_of_call(function: str, argument: ast.expr) -> Iterator[str]:
    text = _text(argument)
    if function == "names" and text:
        yield f"{text}*"
    elif function == "glob" and text.endswith("_*.npz"):  # a glob of all files reads no case
        yield text.removesuffix(".npz")
    elif function == "case" and isinstance(argument, ast.JoinedStr):
        yield "".join(map(_text, argument.values))


def _name(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def _text(node: ast.expr) -> str:
    """Of a literal; `*` for what an f-string fills in."""
    if isinstance(node, ast.FormattedValue):
        return "*"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
