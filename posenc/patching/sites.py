"""Sites: modules whose class was swapped, and what a swapped class does."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posenc.attention import attend
from posenc.encodings.base import AttentionEncoding, Encoding, TokenEncoding
from posenc.intercept import (
    check_self_contained,
    compile_method,
    generate_class,
    parse_method,
    rebuild_with,
    rewritten_forward,
    self_name,
)
from posenc.layout import TokenLayout
from posenc.patching.layouts import LayoutSource
from posenc.terms import Term

# Roles, what a site does: "attention" replaces the attention call in its forward; "block"
# encodes the tokens that its forward returns; "position" encodes those of its position step;
# "hide" hides its absolute table there.


@dataclass
class Site:
    """What a patched module needs besides its own state; kept as its attribute `_posenc`.

    Args:
        name: of the module in the model, for messages.
        layout: tells the layout at run time.
        backend: of `posenc.attend`.
        attention: names of the encodings that act inside attention.
        tokens: names of the encodings that act on tokens.
        shared: encodings that are registered elsewhere (`share=True`).
    """

    name: str
    layout: LayoutSource
    backend: str
    attention: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    shared: dict[str, Encoding] = field(default_factory=dict)

    def encodings(self, module: Any, names: list[str]) -> Iterator[Any]:
        """The encodings of these names, in order."""
        for name in names:
            yield self.shared[name] if name in self.shared else module.posenc[name]


@functools.cache
def site_class(original: Any, roles: tuple[str, ...]) -> type[nn.Module]:
    """The generated subclass of `original` for these roles.

    Raises:
        CannotRewrite: a method that must be rewritten cannot be.
    """
    members: dict[str, Any] = {"_posenc_recipe": rebuild_with(site_class, original, roles)}
    if "attention" in roles:
        members["forward"] = rewritten_forward(original)
        members["_attend"] = _attend
        members["_no_attention_ran"] = _no_attention_ran
    if "block" in roles:
        members["forward"] = _then_encode(members.get("forward", original.forward))
    if "hide" in roles:
        members["_pos_embed"] = _with_hidden_table(original)
        members["_posenc_hidden_table"] = _hidden_table
    if "position" in roles:
        pos_embed = members.get("_pos_embed", original._pos_embed)
        members["_pos_embed"] = _then_encode(pos_embed)
    return generate_class(original, members)


def _attend(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Takes the place of `F.scaled_dot_product_attention` in the module's forward."""
    site: Site = self._posenc
    layout = site.layout.current()
    _check_tokens(site, layout, query.shape[-2])
    terms: list[Term] = []
    for encoding in site.encodings(self, site.attention):
        terms.extend(encoding(query, key, layout, scale=scale))
    return attend(
        query,
        key,
        value,
        terms,
        attn_mask=attn_mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        backend=site.backend,
    )


def _no_attention_ran(self: Any) -> None:
    raise RuntimeError(
        f"posenc: {self._posenc.name} ran without the attention call that was replaced, so its "
        f"encodings had no effect (fused_attn={getattr(self, 'fused_attn', None)}); set "
        "fused_attn = True on the module, or call posenc.unpatch_model(model)"
    )


def _then_encode(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """`method`, then the token encodings of the site on what it returns."""

    @functools.wraps(method)
    def encoded(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        x = method(self, *args, **kwargs)
        site: Site = self._posenc
        layout = site.layout.current()
        _check_tokens(site, layout, x.shape[-2])
        for encoding in site.encodings(self, site.tokens):
            x = encoding(x, layout)
        return x

    return encoded


def _check_tokens(site: Site, layout: TokenLayout, tokens: int) -> None:
    if tokens != layout.num_tokens:
        raise RuntimeError(
            f"posenc: {site.name} got {tokens} tokens, but its layout {layout} has "
            f"{layout.num_tokens}, so positions are not known; switch off what drops or merges "
            "tokens (patch_drop_rate), and change the input size by model.set_input_size(...)"
        )


def _hidden_table(self: Any) -> Tensor:
    return torch.zeros_like(self.pos_embed)


def _with_hidden_table(original: Any) -> Callable[..., Any]:
    """The model's position step reading zeros for its absolute table."""
    method = original._pos_embed
    tree, function = parse_method(method)
    check_self_contained(function)
    _HideTable(self_name(function)).visit(function)
    return compile_method(tree, function, method)


class _HideTable(ast.NodeTransformer):
    """`self.pos_embed` -> `self._posenc_hidden_table()`."""

    def __init__(self, self_name: str) -> None:
        self.self_name = self_name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        owner = node.value
        if node.attr != "pos_embed" or not isinstance(owner, ast.Name):
            return node
        if owner.id != self.self_name or not isinstance(node.ctx, ast.Load):
            return node
        method = ast.Attribute(owner, "_posenc_hidden_table", ast.Load())
        return ast.fix_missing_locations(ast.copy_location(ast.Call(method, [], []), node))


def acts_on(encoding: Encoding) -> str:
    """Kind of an encoding: "attention", or the placement of a token encoding.

    Raises:
        TypeError: neither.
    """
    if isinstance(encoding, AttentionEncoding):
        return "attention"
    if isinstance(encoding, TokenEncoding):
        return encoding.placement
    raise TypeError(
        "an encoding must be a posenc.AttentionEncoding or posenc.TokenEncoding, got "
        f"{type(encoding).__name__}"
    )
