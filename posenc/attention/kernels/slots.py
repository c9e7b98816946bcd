"""Where a pair of tokens reads in the tables of a call, in Triton: by one addition.

A table has a slot for each offset of two patches, and more where that lets a tile be read in runs
of neighbors. With `d = row of the owned token - row of the walked one + height - 1` (see
tiles.py) and the columns of both, a pair of patches has the slot

    BLOCKED      [d][own column][walked column]         one block of numbers for each d
    otherwise    [d][own column - walked column + width - 1]

that is `own_slots + walked_slots`. A prefix token that is owned has one more column, a block's
last row, or a stretch behind the offsets. What is walked at an edge may be a prefix token too:
two slots at the end of the table, for patches that are owned and for prefix tokens.
`forms.py` fills the tables.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pitch(shape):
    """Slots of each d."""
    block: tl.constexpr = (shape.WIDTH + 1) * shape.WIDTH
    return block if shape.BLOCKED else 3 * shape.WIDTH - 1


@triton.jit
def own_slots(places, is_prefix, call, shape):
    """The part of a slot that the owned tokens have."""
    slots = places  # where no table is read
    if shape.WIDTH > 0:
        row = tl.where(is_prefix, 0, places // shape.WIDTH) + call.height - 1
        column = places % shape.WIDTH
        if shape.BLOCKED:
            column = tl.where(is_prefix, shape.WIDTH, column) * shape.WIDTH
        else:
            column = tl.where(is_prefix, 2 * shape.WIDTH - 1, column) + shape.WIDTH - 1
        # The compiler does not see that a block has rows of whole runs.
        slots = tl.multiple_of(row * pitch(shape) + column, shape.RUN)
    return slots


@triton.jit
def walked_slots(places, shape):
    """The part of a slot that patches have that are walked over."""
    slots = places
    if shape.WIDTH > 0:
        row = places // shape.WIDTH * pitch(shape)
        column = places % shape.WIDTH
        slots = column - row if shape.BLOCKED else -column - row
    return slots


@triton.jit
def pair_slots(own, own_is_prefix, places, count, call, shape, EDGE: tl.constexpr):
    """`[own, walked]`; any slot that exists for what does not."""
    if EDGE:
        grid = count - call.prefix
        slots = own[:, None] + walked_slots(tl.minimum(places, grid - 1), shape)[None, :]
        last = (2 * call.height - 1) * pitch(shape) + own_is_prefix.to(tl.int32)
        slots = tl.where((places >= grid)[None, :], last[:, None], slots)
    else:
        slots = own[:, None] + walked_slots(places, shape)[None, :]
        if shape.BLOCKED:
            # Tiles and rows of the grid both begin at multiples of a run, so that a run of places
            # is one of columns. Promised, it is read at once.
            slots = tl.max_contiguous(tl.multiple_of(slots, [1, shape.RUN]), [1, shape.RUN])
    return slots
