"""How much the logits of an attention call vary, and what biases and rotations do to them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from posenc.analysis.recorder import dense_bias
from posenc.attention.call import AttentionCall
from posenc.layout import TokenLayout
from posenc.terms import Rotation

Sides = tuple[Tensor, Tensor]

UNSEEN = 50.0  # so far below its row's maximum a bias hides a pair: e^-50 is 2e-22


def measure_pairs(
    call: AttentionCall, layout: TokenLayout, sides: Sides, unturned: Sides | None
) -> dict[str, Tensor]:
    """Sums over images of variances over queries and keys: name -> `[heads]`.

    Args:
        call: whose biases are read.
        layout: of its tokens.
        sides: queries, scaled, and keys, centered, of its patches: `[B, windows, heads, n, D]`.
        unturned: the same without the rotations of posenc's encodings; None without any.
    """
    count = len(sides[0])
    native = _per_image(native_bias(call), layout, count)
    ours = _per_image(dense_bias(call.terms, call.query), layout, count)
    sums: dict[str, Tensor] = {}
    for index in range(count):  # one image at a time: these are matrices of all pairs
        scores = _logits(sides, index)
        values = _of_image(scores, native[index], ours[index])
        if unturned is not None:
            values["rotation"] = _variance(scores - _logits(unturned, index), None)
        for name, value in values.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def without_rotations(call: AttentionCall) -> AttentionCall | None:
    """The call whose queries and keys no encoding turns; None where none does."""
    left = tuple(term for term in call.terms if not isinstance(term, Rotation))
    return replace(call, terms=left) if len(left) < len(call.terms) else None


def _logits(sides: Sides, index: int) -> Tensor:
    query, key = sides
    return query[index] @ key[index].transpose(-2, -1)


def _of_image(scores: Tensor, native: Tensor | None, ours: Tensor | None) -> dict[str, Tensor]:
    nothing = scores.new_zeros(()).expand_as(scores)
    native, ours = (
        nothing if b is None else b.to(scores).expand_as(scores) for b in (native, ours)
    )
    bias = native + ours
    top = bias.amax(dim=-1, keepdim=True)
    visible = bias > top - UNSEEN
    seen = None if bool(visible.all()) else visible
    return {
        "native_bias": _variance(native, seen),
        "bias": _variance(ours, seen),
        "total": _variance(scores + bias, seen),
    }


def _variance(x: Tensor, seen: Tensor | None) -> Tensor:
    """The mean square over queries and keys, centered over keys, of the pairs that are seen."""
    if seen is None:
        return (x - x.mean(dim=-1, keepdim=True)).square().mean(dim=(0, 2, 3))
    count = seen.sum(dim=-1, keepdim=True).clamp(min=1)
    x = x.masked_fill(~seen, 0.0)
    x = (x - x.sum(dim=-1, keepdim=True) / count).masked_fill(~seen, 0.0)
    return x.square().sum(dim=(0, 2, 3)) / seen.sum(dim=(0, 2, 3)).clamp(min=1)


def native_bias(call: AttentionCall) -> Tensor | None:
    """The mask of the call as a bias, minus infinity at pairs that it hides."""
    mask = call.mask_4d
    if mask is None or mask.dtype != torch.bool:
        return mask
    hidden = torch.zeros(mask.shape, dtype=call.dtype, device=mask.device)
    return hidden.masked_fill(~mask, float("-inf"))


def _per_image(bias: Tensor | None, layout: TokenLayout, images: int) -> list[Tensor | None]:
    """The pairs of patches, for each image `[1 or windows, 1 or heads, n, n]`."""
    if bias is None:
        return [None] * images
    tokens = layout.num_tokens
    pairs = bias.expand(*bias.shape[:2], tokens, tokens)
    pairs = pairs[..., layout.prefix :, layout.prefix :]
    if len(pairs) == 1:
        return [pairs] * images
    return list(pairs.unflatten(0, (images, -1)))
