"""How much of attention's logits content and position explain: estimates of one group of heads."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

QUERY_SIDES = ("content", "position", "mean")
KEY_SIDES = ("content", "position")
PARTS = tuple(f"{query}.{key}" for query in QUERY_SIDES for key in KEY_SIDES)
FEWEST_MEANS = 4  # a square of two means has four factors, each with an error of its own


class Means(NamedTuple):
    """Means over the images of several groups, none of which has the image that is split.

    Args:
        query: `[groups, windows, heads, n, D]`, times the scale of attention.
        key: the same shape, each minus its mean over the n keys.
    """

    query: Tensor
    key: Tensor


def centered(x: Tensor) -> Tensor:
    """Keys `[..., n, D]` minus their mean over keys: softmax does not see what all keys share."""
    return x - x.mean(dim=-2, keepdim=True)


class FixedSides(NamedTuple):
    """What is the same for all images of a group: products of pairs of means."""

    query: dict[str, Tensor]
    key: dict[str, Tensor]


def fixed_sides(means: Means) -> FixedSides:
    """The products of position and grand mean, of queries and keys."""
    grand = means.query.mean(dim=(1, 3), keepdim=True)  # over windows and places
    return FixedSides(
        query={
            "position": _products(means.query - grand),
            "mean": _products(grand.expand_as(means.query)),
        },
        key={"position": _products(means.key)},
    )


def part_variances(query: Tensor, key: Tensor, means: Means, fixed: FixedSides) -> Tensor:
    """Unbiased estimates from one image, in the order of `PARTS`: `[heads, 6]`.

    For the part x.y, with `<>` the mean over ordered choices of four different groups,
    `v = < mean_ij (x_a,i . y_c,j)(x_b,i . y_d,j) >`. Its `x_a` is `q - m_a` (content),
    `m_a - grand_a` (position) or `grand_a` (mean), with `m_a` the mean of group a; so for keys.
    Each factor is right in the mean over images, and the errors of different groups are
    independent of each other and of the image: so is then the product.

    Args:
        query: `[windows, heads, n, D]`, times the scale of attention.
        key: the same shape, minus the mean over keys.
        means: of the groups that do not have this image.
        fixed: of these means.
    """
    queries = {"content": _products(query - means.query), **fixed.query}
    keys = {"content": _products(key - means.key), **fixed.key}
    pairs = query.shape[-2] * key.shape[-2]
    chosen = _disjoint(len(means.query)).to(query.device)
    parts = [
        (queries[x] @ keys[y].transpose(-2, -1))[..., chosen].mean(dim=-1).mean(dim=0)
        for x in QUERY_SIDES
        for y in KEY_SIDES
    ]
    return torch.stack(parts, dim=-1) / pairs


def _products(x: Tensor) -> Tensor:
    """`[groups, windows, heads, n, D]` -> `x_a^T x_b`, symmetric, of each pair of groups a < b.

    Returns:
        `[windows, heads, pairs of groups, D D]`.
    """
    groups, width = x.shape[0], x.shape[-1]
    rows = x.movedim(0, -2).flatten(-2)
    gram = (rows.transpose(-2, -1) @ rows).unflatten(-1, (groups, width))
    blocks = gram.unflatten(-3, (groups, width)).transpose(-3, -2)  # a, b, D, D
    first, second = torch.triu_indices(groups, groups, offset=1, device=x.device)
    chosen = blocks[..., first, second, :, :]
    return ((chosen + chosen.transpose(-2, -1)) / 2).flatten(-2)


def _disjoint(groups: int) -> Tensor:
    """Which pairs of groups share none: `[pairs, pairs]`, in the order of `_products`."""
    pairs = [set(pair) for pair in itertools.combinations(range(groups), 2)]
    return torch.tensor([[a.isdisjoint(b) for b in pairs] for a in pairs])
