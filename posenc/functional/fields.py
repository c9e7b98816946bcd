"""Fields of view: which patches lie in a wedge that starts at a patch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posenc.functional.coordinates import patch_offsets
from posenc.layout import TokenLayout

# (row, column) of eight rays, counterclockwise as an image is seen, from the one to the right.
RAYS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))

Field = tuple[int, int]  # the ray at which it starts, and how many eighths of a turn it spans


def inside_fields(
    layout: TokenLayout, fields: Sequence[Field | None], device: torch.device
) -> Tensor:
    """Whether the key lies in the query's field: `[fields, T]` boolean.

    `T` are the offsets of `posenc.functional.coordinates.patch_offsets`, one for each bucket of
    `posenc.functional.buckets.swin_index`. Both borders of a field, and the query itself, belong
    to it; None is the whole plane.

    Args:
        layout: of the tokens.
        fields: (start, eighths): counterclockwise from ray `start`, 0 to the right and 2 up,
            over 1 to 4 eighths of a turn.
        device: of the result.

    >>> up = inside_fields(TokenLayout(2, 2), [(1, 2)], torch.device("cpu"))
    >>> up.reshape(3, 3).flip(0, 1).int()  # key above, beside and below the query
    tensor([[1, 1, 1],
            [0, 1, 0],
            [0, 0, 0]], dtype=torch.int32)
    """
    # Float64 counts exactly, and half-planes of integers need no tolerance.
    offsets = patch_offsets(layout, device, torch.float64)
    normals = [_normals(field) for field in fields]
    sides = torch.tensor(normals, device=device, dtype=torch.float64) @ offsets.T
    return (sides >= 0).all(dim=1)


def _normals(field: Field | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of its two borders, inward: a field of up to half a turn is where two half-planes meet."""
    if field is None:
        return (0, 0), (0, 0)
    start, eighths = field
    return RAYS[(start + 2) % 8], RAYS[(start + eighths - 2) % 8]
