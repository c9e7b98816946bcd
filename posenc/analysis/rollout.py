"""Attention rollout: how much each patch reaches the output through all layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from posenc.analysis.checks import check_pairs
from posenc.encodings.base import is_finite
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout

HEAD_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda attention: attention.mean(dim=1),
    "max": lambda attention: attention.amax(dim=1),
    "min": lambda attention: attention.amin(dim=1),
}


def attention_rollout(
    attentions: Sequence[Tensor] | Mapping[str, Tensor],
    layout: TokenLayout,
    *,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
    pool: str | None = None,
) -> Tensor:
    """Rolls attention out through the layers, for each image.

    `R = a_L ... a_2 a_1` with `a_l = normalize(discard(fuse(A_l)) + I)`, where `fuse` joins the
    heads, `discard` sets the `int(discard_ratio N^2)` smallest entries of each image to 0 (of
    equal ones the first) and `normalize` divides each row by its sum. The result is what the
    model reads out of R: the row of token 0, or the mean over the rows of patches; of it the
    columns of the patches, divided by their maximum. Where no patch is reached, all are 0.

    The entry (0, 0) is never discarded, as in the public code
    (github.com/jacobgil/vit-explain), which differs in two ways: it divides column j by the sum
    of row j (the sums lose their axis), so that rows do not sum to 1; and it discards the
    smallest entries of all images in the first one only.

    Args:
        attentions: `[B, heads, N, N]` of each layer, the first layer first; or a dictionary of
            them in that order, such as `captured.attention`.
        layout: of the tokens.
        head_fusion: "mean", "max" or "min" over the heads.
        discard_ratio: at least 0 and less than 1.
        pool: what the model reads, as timm's `global_pool`: "token" (token 0, the CLS token) or
            "avg" (the mean of the patches). Default: "token" where there are prefix tokens.

    Raises:
        ValueError: no layers, shapes that fit neither the layout nor each other, or an option
            out of its range, or attention that is not finite.
        TypeError: something that is no floating point tensor.

    Returns:
        `[B, height, width]`, 0 to 1, in at least float32.

    Reference: Abnar and Zuidema 2020, arXiv 2005.00928, section 3.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> first = torch.full((1, 1, 7, 7), 0.1)
    >>> first[..., 5] = 0.4  # all look at patch (1, 1)
    >>> attention_rollout([first], layout)
    tensor([[[0.2500, 0.2500, 0.2500],
             [0.2500, 1.0000, 0.2500]]])
    """
    layers = list(attentions.values() if isinstance(attentions, Mapping) else attentions)
    check_layers(layers, layout, "attention_rollout: attentions")
    check_discard(discard_ratio, "attention_rollout")
    pool = checked_pool(pool, layout, "attention_rollout")
    if head_fusion not in HEAD_FUSIONS:
        known = ", ".join(map(repr, HEAD_FUSIONS))
        raise ValueError(
            f"attention_rollout: head_fusion must be one of {known}, got {head_fusion!r}"
        )
    fuse = HEAD_FUSIONS[head_fusion]
    fused = (fuse(attention.to(at_least_float32(attention.dtype))) for attention in layers)
    steps = [_discard_but_first(attention, discard_ratio) for attention in fused]
    return roll_out(steps, layout, pool)


def roll_out(steps: list[Tensor], layout: TokenLayout, pool: str) -> Tensor:
    """What the model reads of the product of all layers, as a map of the patches.

    Args:
        steps: `[B, N, N]` of each layer, before the residual connection is added.
        layout: of the tokens.
        pool: "token" or "avg".
    """
    rolled = functools.reduce(lambda below, above: above @ below, map(_mix, steps))
    reached = rolled[:, 0] if pool == "token" else rolled[:, layout.prefix :].mean(dim=1)
    patches = reached[:, layout.prefix :]
    largest = patches.amax(dim=-1, keepdim=True)
    shares = torch.where(largest > 0, patches / largest, torch.zeros_like(patches))
    return shares.unflatten(-1, layout.grid)


def discard(fused: Tensor, ratio: float) -> Tensor:
    """The smallest entries of each image `[B, N, N]` set to 0; of equal ones the first."""
    flat = fused.flatten(1)
    count = int(flat.shape[-1] * ratio)
    if count == 0:
        return fused
    smallest = flat.argsort(dim=-1, stable=True)[:, :count]
    return flat.scatter(-1, smallest, 0.0).view_as(fused)


def _discard_but_first(fused: Tensor, ratio: float) -> Tensor:
    first = torch.zeros_like(fused, dtype=torch.bool)
    first[:, 0, 0] = True
    return torch.where(first, fused, discard(fused, ratio))


def _mix(fused: Tensor) -> Tensor:
    """Half of each token stays where it is, by the residual connection; rows sum to 1."""
    identity = torch.eye(fused.shape[-1], device=fused.device, dtype=fused.dtype)
    mixed = fused + identity
    return mixed / mixed.sum(dim=-1, keepdim=True)


def check_layers(layers: list[Tensor], layout: TokenLayout, name: str) -> None:
    """Raises unless these are `[B, heads, N, N]` of the same images, finite, one at least.

    Args:
        layers: what was passed.
        layout: of the tokens.
        name: of function and argument, for messages.
    """
    if not layers:
        raise ValueError(f"{name} must have at least one layer, got none")
    for index, attention in enumerate(layers):
        check_pairs(attention, layout, f"{name}[{index}]", dims=4)
        if not is_finite(attention):
            raise ValueError(
                f"{name}[{index}] has values that are not finite: the model, or what it was "
                "given, is damaged"
            )
        if attention.shape[0] != layers[0].shape[0]:
            raise ValueError(
                f"{name.partition(':')[0]}: all layers must be of the same images, got "
                f"{layers[0].shape[0]} in the first and {attention.shape[0]} in "
                f"{name.rpartition(' ')[2]}[{index}]"
            )


def check_discard(ratio: float, name: str) -> None:
    """Raises unless a share of entries, less than all, can be discarded."""
    if not 0 <= ratio < 1:
        raise ValueError(f"{name}: discard_ratio must be at least 0 and less than 1, got {ratio!r}")


def checked_pool(pool: str | None, layout: TokenLayout, name: str) -> str:
    """What the model reads: as given, or by the layout."""
    pool = pool or ("token" if layout.prefix else "avg")
    if pool not in ("token", "avg"):
        raise ValueError(f'{name}: pool must be "token" or "avg", got {pool!r}')
    if pool == "token" and not layout.prefix:
        raise ValueError(
            f'{name}: pool="token" reads a prefix token, the layout {layout} has none; use '
            'pool="avg"'
        )
    return pool
