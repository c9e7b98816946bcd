"""What a module does around its forward: tokens are encoded, layouts are seen and remembered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from posenc.layout import check_is_fixed
from posenc.patching.layouts import SeenLayout
from posenc.patching.sites.site import Site


def then_encode(method: Callable[..., Any], names: str) -> Callable[..., Any]:
    """`method`, then token encodings of the site on what it returns."""

    @functools.wraps(method)
    def encoded(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if isinstance(result, tuple):  # the tokens, and what goes with them
            return (_encode(self, result[0], names), *result[1:])
        return _encode(self, result, names)

    return encoded


def encode_first(method: Callable[..., Any]) -> Callable[..., Any]:
    """Encodings of the site on the first argument, those of the position first; then `method`."""
    _, name, *_ = inspect.signature(method).parameters

    @functools.wraps(method)
    def encoded(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs.pop(name)
        return method(self, encode_input(self, x), *args[1:], **kwargs)

    return encoded


def encode_input(self: Any, x: Tensor) -> Tensor:
    """What a module receives, encoded."""
    return _encode(self, _encode(self, x, "positions"), "inputs")


def _encode(self: Any, x: Tensor, names: str) -> Tensor:
    site: Site = self._posenc
    if not getattr(site, names):
        return x
    tokens = x.flatten(1, -2)  # [B, height, width, C] in some models
    layout = site.checked_layout(tokens.shape[1])
    for encoding in site.encodings(self, getattr(site, names)):
        tokens = encoding(tokens, layout)
    # Not a view where none is needed: FSDP warns of blocks that return one.
    return tokens if x.dim() == 3 else tokens.reshape(x.shape)


def bind_and_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """`__call__` of a block: binds the layout to the tokens, its first argument.

    Not in forward: that may be compiled, and compiled code does not run again as Python.
    """
    if not torch.compiler.is_compiling():
        source: SeenLayout = self._posenc.layout
        source.bind(args[0] if args else next(iter(kwargs.values())))
    return nn.Module.__call__(self, *args, **kwargs)


def see_map_first(method: Callable[..., Any], pattern: str) -> Callable[..., Any]:
    """Notes the sides of the map that forward receives, then `method`."""

    @functools.wraps(method)
    def seeing(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if pattern == "size":
            height, width = args[0] if args else kwargs["size"]
        else:
            axis = pattern.split().index("h")
            height, width = x.shape[axis : axis + 2]
        self._posenc.layout.see(height, width)
        return method(self, x, *args, **kwargs)

    return seeing


def then_see(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method` of an embedding, then notes the layout of what it saw."""

    @functools.wraps(method)
    def seeing(self: Any, *args: Any, **kwargs: Any) -> Any:
        image = args[0] if args else next(iter(kwargs.values()))
        _check_sides_are_fixed(self, image)
        result = method(self, *args, **kwargs)
        site: Any = self._posenc
        site.layout.see(*site.seen_grid(self, image, result))
        return result

    return seeing


def _check_sides_are_fixed(self: Any, x: Any) -> None:
    """Raises when an export leaves the sides of the image open."""
    # Before the embedding runs: Dynamo fixes a side without a word that timm prints in a message,
    # and the ONNX exporter then takes that for what the user wanted.
    if isinstance(x, Tensor):
        check_is_fixed(f"posenc: the input of {self._posenc.name}", x.shape[1:])
