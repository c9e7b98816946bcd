"""Tables of a call in the forms that the kernels read, see slots.py.

An operand of the operator has an entry for each offset, as `PairIndex.buckets`, and three for
prefix pairs behind them: (prefix query, patch), (patch, prefix key), (prefix query, prefix key).
A kernel's table has copies of these. In blocks, neighbors in a row of keys are neighbors in the
table, `(2 height - 1) (width + 1) width` numbers for each head.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor

from posenc._torch import constant_under_dynamo
from posenc.memo import memoized
from posenc.pairs import PairIndex

# Blocks of more slots take much memory: beside these, a table of 16 heads takes 64 MiB. An
# estimate; `POSENC_TABLES=blocks` or `offsets` decides for all.
MOST_SLOTS = 2**20
ALIGNMENT = 16  # of tables in memory, in entries: what a kernel must know to read runs


class Form(NamedTuple):
    """How the tables of a grid are laid out."""

    height: int
    width: int
    blocked: bool

    @property
    def pitch(self) -> int:
        """Slots of each row difference."""
        return (self.width + 1) * self.width if self.blocked else 3 * self.width - 1

    @property
    def run(self) -> int:
        """So many neighbors are read at once: what divides the width, at most 16 bytes."""
        return max(run for run in (1, 2, 4) if self.width % run == 0) if self.blocked else 1


@constant_under_dynamo
def prefers_blocks(height: int, width: int) -> bool:
    """Tables in blocks, unless they are large, or nothing needs a grid."""
    wanted = os.environ.get("POSENC_TABLES")
    if wanted is not None and width > 0:
        return _is_blocked(wanted)
    slots = (2 * height - 1) * (width + 1) * width
    return 0 < slots <= MOST_SLOTS


@memoized
def offset_buckets(index: PairIndex, device: torch.device) -> Tensor:
    """The bucket of each entry of an operand: `[offsets]` or `[offsets + 3]` int64."""
    table, count = index.offset_table(device).buckets, index.buckets.numel()
    stretch = max(1, (len(table) - count) // 3)  # places of each kind of prefix pair
    return torch.cat([table[:count], table[count::stretch]])


@memoized
def slot_offsets(form: Form, prefix: bool, by_key: bool, device: torch.device) -> Tensor:
    """The entry of an operand that each slot copies: `[slots]` int64."""
    height, width, blocked = form
    own, walked = torch.arange(width, device="cpu")[:, None], torch.arange(width, device="cpu")
    columns = own - walked + width - 1 if blocked else torch.arange(2 * width - 1, device="cpu")
    rows = torch.arange(2 * height - 1, device="cpu") * (2 * width - 1)
    offsets = rows[:, None] + columns.flatten()
    count = (2 * height - 1) * (2 * width - 1)
    owned, walked_over, both = (count, count + 1, count + 2) if prefix else (0, 0, 0)
    if by_key:  # keys are owned, and the offset of a pair is the opposite
        offsets, owned, walked_over = count - 1 - offsets, walked_over, owned
    stretch = offsets.new_full((len(rows), form.pitch - offsets.shape[1]), owned)
    slots = torch.cat([offsets, stretch], 1).flatten()
    slots = torch.cat([slots, slots.new_tensor([walked_over, both])])
    padding = slots.new_zeros(-len(slots) % ALIGNMENT)
    return torch.cat([slots, padding]).to(device)


def _is_blocked(wanted: str) -> bool:
    if wanted not in ("blocks", "offsets"):
        raise ValueError(f'POSENC_TABLES must be "blocks" or "offsets", got {wanted!r}')
    return wanted == "blocks"
