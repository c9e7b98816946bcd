"""Reads docstrings as they are written: Google style with backquotes and tables of Markdown."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from docutils import nodes
from sphinx import addnodes

NAME = re.compile(r"posenc(\.\w+)+(\(.*\))?")


def setup(app: Any) -> dict[str, bool]:
    """Registers `code_name`, which conf.py makes the default role, and the tables."""
    app.add_role("code_name", _code_name)
    app.connect("autodoc-process-docstring", _convert_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _code_name(role: str, rawtext: str, text: str, *_: Any, **__: Any) -> tuple[list, list]:
    """Code, and a link where it is a name of posenc."""
    text = re.sub(r"\x00", r"\\", text)
    literal = nodes.literal(rawtext, text)
    if not NAME.fullmatch(text):
        return [literal], []
    target = text.partition("(")[0]
    attributes = {"refdomain": "py", "reftype": "obj", "reftarget": target, "refexplicit": True}
    return [addnodes.pending_xref(rawtext, literal, **attributes)], []


def _convert_tables(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = converted(lines)


def converted(lines: list[str]) -> list[str]:
    """The lines with `list-table` directives for tables of Markdown.

    >>> converted(["| a | b |", "|---|---|", "| c | `d` |"])[1:]
    ['   :header-rows: 1', '', '   * - a', '     - b', '   * - c', '     - `d`', '']
    """
    result: list[str] = []
    for is_table, group in groupby(lines, key=lambda line: line.strip().startswith("|")):
        part = list(group)
        result += _list_table(part) if is_table else part
    return result


def _list_table(rows: list[str]) -> list[str]:
    table = [".. list-table::", "   :header-rows: 1", ""]
    for row in [rows[0], *rows[2:]]:
        first, *others = (cell.strip() for cell in row.strip().strip("|").split("|"))
        table += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return [*table, ""]
