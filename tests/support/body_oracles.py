"""The formulas of this project about upright bodies as loops over tokens, independent of posenc.

They have no published original. Layouts and biases are those of `oracles`.
"""

from __future__ import annotations

import math

import torch
from oracles import build_bias, position
from torch import Tensor


def part_centers(spacing: Tensor) -> list[Tensor]:
    """Running sums of P + 1 gaps, which are shares of the whole, without the last."""
    gaps = [(number - spacing.max()).exp() for number in spacing]
    running, centers = 0.0, []
    for gap in gaps[:-1]:
        running = running + gap / sum(gaps)
        centers.append(running)
    return centers


def part_membership(y: Tensor | float, spacing: Tensor, log_width: Tensor) -> Tensor:
    """`[..., P]` of one height `[...]`."""
    spread = 2 * log_width.squeeze().exp() ** 2
    exponents = torch.stack([-((y - c) ** 2) / spread for c in part_centers(spacing)], -1)
    weights = (exponents - exponents.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def body_heights(logits: list[Tensor], height: int, width: int) -> list[Tensor]:
    """y' of each patch, `[B]` each; `logits` one for each patch, `[B]` each.

    A row is a stripe of height 1 / h, so that the variance in it is 1 / (12 h^2).
    """
    rows = [(patch // width + 0.5) / height for patch in range(height * width)]
    top = torch.stack(logits).detach().amax(0)
    weights = [(logit - top).exp() for logit in logits]
    shares = [weight / sum(weights) for weight in weights]
    mean = sum(share * y for share, y in zip(shares, rows, strict=True))
    variance = sum(share * (y - mean) ** 2 for share, y in zip(shares, rows, strict=True))
    body = (variance + 1 / (12 * height**2)).sqrt()
    return [0.5 + (y - mean) * math.sqrt(1 / 12) / body for y in rows]


def human_part_bias(
    parameters: dict[str, Tensor], height: int, width: int, prefix: int, k: Tensor | None = None
) -> Tensor:
    """`g (S_i^T A S_j - dy^2 / (2 sv^2) - dx^2 / (2 sh^2))`; prefix: `g u^T A S_j`, `g S_i^T w`, 0.

    Keys: part_spacing, log_part_width, affinity, log_vertical_extent, log_horizontal_extent,
    strength; with prefix tokens prefix_query (u, made zero-sum) and prefix_key (w); if adaptive
    foreground, which reads the mean over heads of k `[B, heads, N, D]`.
    """
    heads = range(len(parameters["strength"]))
    heights = [(row + 0.5) / height for row in range(height) for _ in range(width)]
    heights = [torch.tensor(y, dtype=torch.float64) for y in heights]
    if "foreground" in parameters:
        means = [
            sum(k[:, head, prefix + n] for head in heads) / len(heads) for n in range(len(heights))
        ]
        heights = body_heights([mean @ parameters["foreground"] for mean in means], height, width)
    shape = parameters["part_spacing"], parameters["log_part_width"]
    memberships = [part_membership(y, *shape) for y in heights]

    def column(token: int) -> float:
        return (position(token, width, prefix)[1] + 0.5) / width

    def score(head: int, i: int, j: int) -> Tensor:
        affinity = parameters["affinity"][head]
        if i < prefix and j < prefix:
            return torch.zeros((), dtype=affinity.dtype)
        if i < prefix:
            u = parameters["prefix_query"][head]
            return memberships[j - prefix] @ ((u - u.mean()) @ affinity)
        if j < prefix:
            return memberships[i - prefix] @ parameters["prefix_key"][head]
        dy, dx = heights[i - prefix] - heights[j - prefix], column(i) - column(j)
        vertical = parameters["log_vertical_extent"][head].exp()
        horizontal = parameters["log_horizontal_extent"][head].exp()
        window = dy**2 / (2 * vertical**2) + dx**2 / (2 * horizontal**2)
        pair = (memberships[i - prefix] @ affinity * memberships[j - prefix]).sum(-1)
        return pair - window

    images = 1 if k is None else len(k)

    def entry(i: int, j: int) -> Tensor:
        scores = [score(head, i, j).expand(images) for head in heads]
        return parameters["strength"] * torch.stack(scores, -1)

    return build_bias(height, width, prefix, entry)


def body_tokens(parameters: dict[str, Tensor], x: Tensor, height: int, width: int, prefix: int):
    """`x_i + sum_p S_ip e_p + sum_k f_k(u_i) E_k` for patches; prefix tokens as they are.

    Keys: part_embedding (e), part_spacing, log_part_width, column_embedding (E); if adaptive
    foreground, which reads the tokens.
    """
    shape = parameters["part_spacing"], parameters["log_part_width"]
    patches = [x[:, prefix + n] for n in range(height * width)]
    heights = [x.new_full((len(x),), (n // width + 0.5) / height) for n in range(len(patches))]
    if "foreground" in parameters:
        heights = body_heights(
            [patch @ parameters["foreground"] for patch in patches], height, width
        )
    tokens = [x[:, token] for token in range(prefix)]
    for n, (patch, y) in enumerate(zip(patches, heights, strict=True)):
        u = (n % width + 0.5) / width
        total = patch
        for part, vector in enumerate(parameters["part_embedding"]):
            total = total + part_membership(y, *shape)[:, part, None] * vector
        around = 2 * math.pi * u
        functions = (u - 0.5, (u - 0.5) ** 2 - 1 / 12, math.cos(around), math.sin(around))
        for number, vector in zip(functions, parameters["column_embedding"], strict=True):
            total = total + number * vector
        tokens.append(total)
    return torch.stack(tokens, 1)
