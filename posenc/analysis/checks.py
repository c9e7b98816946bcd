"""Checks of what the functions of this package receive."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from posenc.encodings.base import check_layout
from posenc.layout import TokenLayout
from posenc.patching.models.examine import check_module


def check_floating(given: Any, name: str) -> Tensor:
    """Raises unless `given` is a floating point tensor.

    Args:
        given: what was passed.
        name: of function and argument, for messages.
    """
    if not isinstance(given, Tensor) or not given.is_floating_point():
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name} must be a floating point tensor, got {got}")
    return given


def check_pairs(matrix: Any, layout: TokenLayout, name: str, dims: int | None = None) -> Tensor:
    """Raises unless `matrix` is `[..., N, N]` with the tokens of `layout`.

    Args:
        matrix: what was passed.
        layout: of its tokens.
        name: of function and argument, for messages.
        dims: number of dimensions, where it is fixed; 4 is `[B, heads, N, N]`.
    """
    check_layout(layout, name)
    checked = check_floating(matrix, name)
    tokens = layout.num_tokens
    right_dims = matrix.dim() == dims if dims is not None else matrix.dim() >= 2
    if not right_dims or tuple(matrix.shape[-2:]) != (tokens, tokens):
        before = "B, heads" if dims == 4 else "..."
        raise ValueError(
            f"{name} must be [{before}, {tokens}, {tokens}] for the layout {layout} with "
            f"{tokens} tokens, got {list(matrix.shape)}; pass the layout of these tokens "
            "(captured.layouts has it)"
        )
    return checked


def check_tokens(tokens: Any, layout: TokenLayout, name: str) -> Tensor:
    """Raises unless `tokens` is `[B, N, C]` with the tokens of `layout`.

    Args:
        tokens: what was passed.
        layout: of these tokens.
        name: of function and argument, for messages.
    """
    check_layout(layout, name)
    checked = check_floating(tokens, name)
    if tokens.dim() != 3 or tokens.shape[1] != layout.num_tokens:
        raise ValueError(
            f"{name} must be [B, {layout.num_tokens}, C] for the layout {layout}, got "
            f"{list(tokens.shape)}; pass the layout of these tokens"
        )
    return checked


def check_images(model: nn.Module, images: Any, batch_size: Any, name: str) -> None:
    """Raises unless these are images, in batches, for a module in eval mode.

    Args:
        model: that will see them.
        images: what was passed.
        batch_size: images in one forward.
        name: of the function, for messages.
    """
    check_module(model)
    check_floating(images, f"{name}: images")
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"{name}: images must be [B, 3, H, W], got {list(images.shape)}")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{name}: batch_size must be a positive int, got {batch_size!r}")
    if model.training:
        raise ValueError(
            f"{name}: the model is in training mode, where its forwards may differ: call "
            "model.eval() first"
        )
