"""Where pairs read in tables, for grids of every kind, by the kernels' own arithmetic."""

import hints
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from kernel_calls import DEVICE, assert_equal_to_reference, qkv, random_terms, set_tiles
from random_calls import random_index
from triton.runtime.interpreter import TensorHandle

from posenc import TokenLayout
from posenc.attention.kernels import forms
from posenc.attention.kernels.forms import ALIGNMENT, offset_buckets, prefers_blocks, slot_offsets
from posenc.attention.kernels.slots import own_slots, pair_slots
from posenc.attention.kernels.tiles import Call, Shape, tokens_at, walked, whole_tiles

GRIDS = [(1, 1), (1, 6), (4, 1), (3, 5), (5, 4), (2, 8), (4, 14), (3, 7), (2, 16), (6, 3)]
SIZE = 16  # of a tile


def read_pairs(table, out, height, prefix, count, call, shape):
    """`out[own token, walked token]`, as the kernels walk."""
    i = tl.program_id(0) * shape.ROWS + tl.arange(0, shape.ROWS)
    is_prefix = i >= count - prefix
    own = own_slots(i, is_prefix, call, shape)
    rows = tokens_at(i, prefix, count) * count
    whole = whole_tiles(count, prefix, shape.COLUMNS)
    for start in range(0, whole, shape.COLUMNS):
        j, columns = walked(start, prefix, count, False, shape.COLUMNS)
        slots = pair_slots(own, is_prefix, j, count, call, shape, False)
        inside = tl.broadcast_to((i < count)[:, None], slots.shape)
        tl.store(out + rows[:, None] + columns[None, :], tl.load(table + slots), mask=inside)
    for start in range(whole, count, shape.EDGE):
        j, columns = walked(start, prefix, count, True, shape.EDGE)
        slots = pair_slots(own, is_prefix, j, count, call, shape, True)
        inside = (i < count)[:, None] & (j < count)[None, :]
        tl.store(out + rows[:, None] + columns[None, :], tl.load(table + slots), mask=inside)


def buckets_read(index, form, by_key):
    layout, device = index.layout, torch.device(DEVICE)
    count = layout.num_tokens
    where = slot_offsets(form, layout.prefix > 0, by_key, device)
    table = offset_buckets(index, device)[where].to(torch.int32)
    out = torch.full((count, count), -1, dtype=torch.int32, device=DEVICE)
    call = Call(*[None] * len(Call._fields))._replace(prefix=layout.prefix, height=layout.height)
    sizes = dict.fromkeys(Shape._fields, 0)
    sizes |= {"ROWS": SIZE, "COLUMNS": SIZE, "EDGE": SIZE, "WIDTH": form.width}
    sizes |= {"BLOCKED": form.blocked, "RUN": form.run}
    shape = Shape(*map(tl.constexpr, sizes.values()))
    numbers = (layout.height, layout.prefix, count)
    kernel = triton.jit(read_pairs)  # here, where the interpreter is asked for
    kernel[(-(-count // SIZE),)](table, out, *numbers, call, shape)
    return out


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_each_pair_reads_its_bucket(grid, prefix, blocked, by_key):
    index = random_index(TokenLayout(*grid, prefix))
    read = buckets_read(index, forms.Form(*grid, blocked), by_key)
    expected = index.dense(DEVICE).T if by_key else index.dense(DEVICE)
    assert torch.equal(read, expected.to(torch.int32))


def test_a_transposed_index():
    index = random_index(TokenLayout(3, 4, 2)).T
    assert torch.equal(
        buckets_read(index, forms.Form(3, 4, True), False), index.dense(DEVICE).int()
    )


@pytest.mark.parametrize(("width", "run"), [(1, 1), (7, 1), (14, 2), (2, 2), (32, 4), (12, 4)])
def test_runs_that_divide_the_width(width, run):
    assert forms.Form(5, width, True).run == run
    assert forms.Form(5, width, False).run == 1


@pytest.mark.parametrize("blocked", [False, True])
def test_tables_are_aligned_for_every_head(blocked):
    for grid in GRIDS:
        slots = slot_offsets(forms.Form(*grid, blocked), True, False, torch.device("cpu"))
        assert len(slots) % ALIGNMENT == 0


def test_large_tables_are_not_expanded(monkeypatch):
    assert prefers_blocks(64, 64)
    assert not prefers_blocks(128, 128)
    monkeypatch.setenv("POSENC_TABLES", "blocks")
    assert prefers_blocks(128, 128)
    monkeypatch.setenv("POSENC_TABLES", "offsets")
    assert not prefers_blocks(4, 4)
    monkeypatch.setenv("POSENC_TABLES", "runs")
    with pytest.raises(ValueError, match='POSENC_TABLES must be "blocks" or "offsets", got'):
        prefers_blocks(4, 4)


@pytest.mark.parametrize("kind", ["static", "query", "key"])
def test_tables_that_are_not_expanded_mean_the_same(kind, monkeypatch):
    monkeypatch.setenv("POSENC_TABLES", "offsets")
    set_tiles(monkeypatch, 16, 16)
    terms, leaves = random_terms(kind, (5, 4, 2))
    assert_equal_to_reference(qkv(22), terms, leaves)


@pytest.mark.parametrize(
    ("numbers", "name", "values", "is_true"),
    [
        ([[0, 1, 4, 5]], "tt.contiguity", [1, 2], True),
        ([[0, 1, 4, 5]], "tt.contiguity", [1, 4], False),
        ([[1, 2, 5, 6]], "tt.divisibility", [1, 2], False),
        ([[2, 3, 6, 7]], "tt.divisibility", [1, 2], True),
        ([[8, 4, 4, 0]], "tt.divisibility", [1, 4], True),
        ([[8, 4, 4, 2]], "tt.divisibility", [1, 4], False),
    ],
)
def test_promises_are_checked(numbers, name, values, is_true):
    handle = TensorHandle(np.array(numbers, dtype=np.int32), tl.int32)
    if is_true:
        hints.set_attr(handle, name, values)
        assert handle.attr[name] == values
    else:
        with pytest.raises(AssertionError, match=r"runs of|multiples of"):
            hints.set_attr(handle, name, values)
