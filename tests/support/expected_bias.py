"""The bias of each encoding from its parameters, by the formulas of `oracles`."""

from __future__ import annotations

import functools

import body_oracles
import oracles
import torch
from random_encodings import SILENT


@functools.cache
def irpe_map(layout):
    tokens = range(oracles.num_tokens(*layout))
    return torch.tensor(
        [
            [oracles.irpe_bucket(i, j, *layout[1:], "product", 1.9, "shared") for j in tokens]
            for i in tokens
        ]
    )


def irpe_bias(encoding, q, layout, scale):
    lookup = scale * q @ encoding.table_k
    return torch.gather(lookup, -1, irpe_map(layout).expand(*q.shape[:3], -1))


def swin_bias(encoding, q, layout, scale):
    table = encoding.table
    if encoding.layout.grid != layout[:2]:
        table = oracles.resample_offsets(table, encoding.layout.grid, layout[:2])
    return oracles.swin_bias(table, *layout)


# From an encoding with its default options, q `[B, heads, N, D]`, (height, width, prefix), scale.
BIAS = {
    "irpe": irpe_bias,
    "swin": swin_bias,
    "quadratic": lambda e, q, layout, scale: oracles.quadratic_bias(
        e.centers, e.alpha, e.strength, *layout
    ),
    "human_part": lambda e, q, layout, scale: body_oracles.human_part_bias(
        dict(e.named_parameters()), *layout
    ),
}

# With these they start without effect.
OPTIONS = {name: SILENT[name] for name in BIAS}
