"""How many columns the low-rank backend adds to query and key."""

import pytest
import torch

from posenc import LookupBias, LowRankBias, TokenLayout, pair_index
from posenc.attention.api import make_call
from posenc.attention.backends import lowrank

LAYOUT = TokenLayout(2, 3, prefix=1)


def low_rank(rank):
    return LowRankBias(torch.randn(1, 2, 7, rank), torch.randn(1, 2, 7, rank))


def along(axis):
    buckets = torch.zeros(3, 5, dtype=torch.int64)
    index = pair_index(LAYOUT, buckets, 1, "shared", axis)
    return LookupBias(torch.randn(1, 2, 1, index.num_buckets), index)


def made(dtype, *terms):
    q = torch.randn(1, 2, 7, 4).to(dtype)
    return make_call(q, q, q, terms, None, 0.0, False, None, False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_as_many_as_are_counted(dtype):
    """In 16 bit high parts and rests: three products of two numbers, two of a number and a one."""
    half = dtype in (torch.bfloat16, torch.float16)
    expected = [
        (low_rank(5), 15 if half else 5),
        (along("rows"), 6 if half else 3),  # two rows, and the prefix
        (along("cols"), 8 if half else 4),
    ]
    for term, columns in expected:
        call = made(dtype, term)
        assert lowrank.rank(call) == columns
        left, right = lowrank._columns(term, call)
        assert left.shape[-1] == right.shape[-1] == columns
        assert left.dtype == right.dtype == dtype
    call = made(dtype, *(term for term, _ in expected))
    assert lowrank.rank(call) == sum(columns for _, columns in expected)
    assert lowrank.width(call) == -(-(4 + lowrank.rank(call)) // 8) * 8


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 252), (torch.bfloat16, 84)])
def test_the_widest_that_is_computed(dtype, largest):
    """256 columns of a kernel, 4 of them the head's: exactly that many, and not one more."""
    assert lowrank.rejects(made(dtype, low_rank(largest))) is None
    assert "columns, more than 256" in lowrank.rejects(made(dtype, low_rank(largest + 1)))
