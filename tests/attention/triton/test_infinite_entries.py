"""Tables with entries of minus infinity: rows that see nothing in a tile, but something in all."""

import math

import pytest
import torch
from kernel_calls import HEADS, LAYOUTS, assert_equal_to_reference, numbers, qkv, set_tiles

import posenc
from posenc import TokenLayout
from posenc.functional.buckets import swin_index
from posenc.terms import LookupBias


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [45, 180])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_fields_of_view(layout, degrees, monkeypatch):
    set_tiles(monkeypatch, 16, 16)
    layout = TokenLayout(*layout)
    inputs = qkv(layout.num_tokens)
    encoding = posenc.LookHere(layout, HEADS, field_of_view=degrees)
    assert_equal_to_reference(inputs, encoding(*inputs[:2], layout))


@pytest.mark.slow
def test_a_table_that_is_trained_beside_them(monkeypatch):
    set_tiles(monkeypatch, 16, 16)
    layout = TokenLayout(7, 5)
    index = swin_index(layout, "none")
    # The query itself and all keys below it: the last queries see nothing in the first tiles.
    keep = torch.arange(index.num_buckets) <= index.num_buckets // 2
    table = numbers(1, HEADS, 1, index.num_buckets)
    cut = torch.zeros(1, 1, 1, index.num_buckets).masked_fill(~keep, -math.inf).to(table)
    inputs = qkv(layout.num_tokens)
    assert_equal_to_reference(inputs, [LookupBias(table, index), LookupBias(cut, index)], [table])
