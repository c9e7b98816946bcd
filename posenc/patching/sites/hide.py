"""Hiding a model's absolute position table: its methods read zeros instead."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posenc.intercept import check_self_contained, compile_method, parse_method, self_name


def hidden_table(self: Any, name: str) -> Tensor:
    """Member of a generated class: what its methods read in place of the table."""
    return torch.zeros_like(getattr(self, name))


def with_hidden_table(original: Any, method: str, table: str) -> Callable[..., Any]:
    """The method of `original` with `self.<table>` -> `self._posenc_hidden_table("<table>")`.

    Raises:
        CannotRewrite: its source is out of reach.
    """
    function = getattr(original, method)
    tree, definition = parse_method(function)
    check_self_contained(definition)
    _HideTable(self_name(definition), table).visit(definition)
    return compile_method(tree, definition, function)


class _HideTable(ast.NodeTransformer):
    def __init__(self, self_name: str, table: str) -> None:
        self.self_name = self_name
        self.table = table

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        owner = node.value
        if node.attr != self.table or not isinstance(owner, ast.Name):
            return node
        if owner.id != self.self_name or not isinstance(node.ctx, ast.Load):
            return node
        method = ast.Attribute(owner, "_posenc_hidden_table", ast.Load())
        call = ast.Call(method, [ast.Constant(self.table)], [])
        return ast.fix_missing_locations(ast.copy_location(call, node))
