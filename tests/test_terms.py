import pytest
import torch

import posenc
from posenc import TokenLayout
from posenc.pairs import PairIndex
from posenc.terms import (
    CallShape,
    ContentScale,
    DenseBias,
    LookupBias,
    LowRankBias,
    MatrixRotation,
    Mixture,
    Rotation,
    Term,
    ValueLookup,
)

LAYOUTS = [(2, 5, 0), (4, 3, 1), (1, 6, 2), (3, 2, 5), (1, 1, 0), (1, 1, 1)]


def pair_index(height, width, prefix, *, transposed=False):
    """Each offset, and each kind of prefix pair, has a bucket of its own."""
    shape = (2 * height - 1, 2 * width - 1)
    count = shape[0] * shape[1]
    return PairIndex(
        TokenLayout(height, width, prefix),
        torch.arange(count).reshape(shape),
        count + 3,
        (count, count + 1, count + 2) if prefix else None,
        transposed,
    )


def bucket(i, j, height, width, prefix):
    """The same, pair by pair: query i, key j."""
    count = (2 * height - 1) * (2 * width - 1)
    if i < prefix or j < prefix:
        return count + (2 if i < prefix and j < prefix else 0 if i < prefix else 1)
    (row_i, column_i), (row_j, column_j) = divmod(i - prefix, width), divmod(j - prefix, width)
    return (row_i - row_j + height - 1) * (2 * width - 1) + column_i - column_j + width - 1


def bucket_map(layout):
    tokens = range(layout[2] + layout[0] * layout[1])
    return torch.tensor([[bucket(i, j, *layout) for j in tokens] for i in tokens])


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_of_each():
    index = pair_index(2, 3, 0)
    table, square = random(1, 1, 1, index.num_buckets), random(1, 1, 6, 6)
    mixed = DenseBias(square)
    return [
        mixed,
        LookupBias(table, index),
        LowRankBias(square, square),
        ValueLookup(table[0, 0], index),
        ContentScale(square[..., :1, :1]),
        Rotation(square, square),
        MatrixRotation(random(1, 1, 6, 1, 2, 2)),
        Mixture(square[..., :1], (mixed,)),
    ]


def test_terms_are_told_apart_by_identity():
    """Their tensors have no single answer to whether they are equal."""
    terms, same = one_of_each(), one_of_each()
    public = {each for each in vars(posenc).values() if isinstance(each, type)}
    assert {type(term) for term in terms} == {each for each in public if issubclass(each, Term)}
    assert len({*terms, *same}) == 2 * len(terms)
    assert all(term != other for term, other in zip(terms, same, strict=True))


@pytest.mark.parametrize("missing", ["tensors", "check"])
def test_a_term_has_tensors_and_a_check(missing):
    methods = {"tensors": dict, "check": print}
    del methods[missing]
    with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
        type("Mine", (Term,), methods)()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pair_index_equals_loops(layout):
    index = pair_index(*layout)
    expected = bucket_map(layout)
    assert index.dense().dtype == torch.int64
    assert torch.equal(index.dense(), expected)
    assert torch.equal(index.T.dense(), expected.T)
    assert torch.equal(index.T.T.dense(), expected)
    assert torch.equal(pair_index(*layout, transposed=True).dense(), expected.T)


def test_pair_index_maps_are_remembered_per_index_and_device():
    index = pair_index(2, 3, 1)
    assert index.dense() is index.dense("cpu")
    assert index.T is index.T
    assert index.dense() is not pair_index(2, 3, 1).dense()
    assert index.dense("meta").device.type == "meta"
    assert index.dense().device.type == "cpu"


@pytest.mark.parametrize(
    ("shape", "prefix_buckets", "message"),
    [
        ((5, 3), (0, 0, 0), r"must have shape \(3, 5\) for the layout 2x3 \+ 1 prefix, got \(5, 3"),
        ((3, 5), None, r"if and only if the layout has prefix tokens, got None for 2x3 \+ 1"),
    ],
)
def test_pair_index_refuses(shape, prefix_buckets, message):
    with pytest.raises(ValueError, match=message):
        PairIndex(TokenLayout(2, 3, 1), torch.zeros(shape).long(), 4, prefix_buckets)


def test_pair_index_refuses_prefix_buckets_without_prefix():
    with pytest.raises(ValueError, match=r"prefix_buckets .* got \(0, 0, 0\) for 2x3"):
        PairIndex(TokenLayout(2, 3), torch.zeros(3, 5).long(), 4, (0, 0, 0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("leading", [(1, 1), (2, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("contextual", [False, True])
def test_lookup_equals_loops(layout, side, transposed, leading, contextual):
    index = pair_index(*layout, transposed=transposed)
    tokens = index.layout.num_tokens
    lookup = random(*leading, tokens if contextual else 1, index.num_buckets)
    buckets = bucket_map(layout).T if transposed else bucket_map(layout)
    expected = torch.empty(*leading, tokens, tokens, dtype=torch.float64)
    for i in range(tokens):
        for j in range(tokens):
            row = (i if side == "query" else j) if contextual else 0
            expected[..., i, j] = lookup[..., row, buckets[i, j]]
    term = LookupBias(lookup, index, side)
    assert torch.equal(term.dense(), expected)
    term.check(CallShape(leading[0], leading[1], tokens, 4, 1))


def test_lookup_gradient_sums_over_pairs():
    index = pair_index(2, 3, 1)
    lookup = random(1, 2, 1, index.num_buckets).requires_grad_()
    LookupBias(lookup, index).dense().sum().backward()
    counts = torch.bincount(bucket_map((2, 3, 1)).flatten(), minlength=index.num_buckets)
    assert torch.equal(lookup.grad, counts.double().expand(1, 2, 1, -1))


def test_lookup_refuses_a_side():
    with pytest.raises(ValueError, match='side must be "query" or "key", got \'value\''):
        LookupBias(torch.zeros(1, 1, 1, 18), pair_index(2, 3, 0), "value")


@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_equals_loops(rank):
    left, right = random(2, 1, 5, rank), random(1, 3, 5, rank, seed=1)
    expected = torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            for r in range(rank):
                expected[..., i, j] += left[..., i, r] * right[..., j, r]
    torch.testing.assert_close(LowRankBias(left, right).dense(), expected, rtol=1e-13, atol=1e-14)


def test_dense_is_itself():
    bias = random(1, 2, 3, 3)
    assert DenseBias(bias).dense() is bias


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("table_heads", [1, 3])
def test_value_lookup_equals_loops(layout, table_heads):
    index = pair_index(*layout)
    tokens = index.layout.num_tokens
    attention = random(2, 3, tokens, tokens).softmax(-1)
    table = random(table_heads, index.num_buckets, 7, seed=1)
    buckets = bucket_map(layout)
    expected = torch.zeros(2, 3, tokens, 7, dtype=torch.float64)
    for i in range(tokens):
        for j in range(tokens):
            expected[:, :, i] += attention[:, :, i, j, None] * table[:, buckets[i, j]]
    term = ValueLookup(table, index)
    torch.testing.assert_close(term.apply(attention), expected, rtol=1e-13, atol=1e-14)
    term.check(CallShape(2, 3, tokens, 4, 7))


INDEX = pair_index(2, 2, 1)  # 5 tokens, 12 buckets


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (DenseBias(torch.zeros(3, 1, 5, 5)), r"\[1 or 2, 1 or 4, 5, 5\] .* got \[3, 1, 5, 5\]"),
        (DenseBias(torch.zeros(1, 1, 5, 4)), r"DenseBias.bias .* got \[1, 1, 5, 4\]"),
        (DenseBias(torch.zeros(1, 1, 1, 5)), r"DenseBias.bias .* got \[1, 1, 1, 5\]"),
        (DenseBias(torch.zeros(5, 5)), r"DenseBias.bias must have shape .* got \[5, 5\]"),
        (
            LookupBias(torch.zeros(1, 1, 2, 12), INDEX),
            r"LookupBias.lookup must have shape \[1 or 2, 1 or 4, 1 or 5, 12\] .* \[1, 1, 2, 12\]",
        ),
        (LookupBias(torch.zeros(1, 1, 1, 11), INDEX), r"LookupBias.lookup .* got \[1, 1, 1, 11\]"),
        (
            LookupBias(torch.zeros(1, 1, 1, 18), pair_index(2, 3, 0)),
            "the layout 2x3 has 6 tokens, but the queries have 5",
        ),
        (
            LowRankBias(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 5, 2)),
            r"LowRankBias.left must have shape \[1 or 2, 1 or 4, 5, 2\] .* got \[1, 1, 4, 2\]",
        ),
        (
            LowRankBias(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 3)),
            r"LowRankBias.right must have shape .* 5, 2\] .* got \[1, 1, 5, 3\]",
        ),
        (
            ValueLookup(torch.zeros(3, 12, 8), INDEX),
            r"ValueLookup.table must have shape \[1 or 4, 12, 8\] .* got \[3, 12, 8\]",
        ),
        (ValueLookup(torch.zeros(1, 12, 7), INDEX), r"ValueLookup.table .* got \[1, 12, 7\]"),
        (
            ValueLookup(torch.zeros(1, 18, 8), pair_index(2, 3, 0)),
            "the layout 2x3 has 6 tokens, but the queries have 5",
        ),
    ],
)
def test_shapes_are_checked(term, message):
    with pytest.raises(ValueError, match=message):
        term.check(CallShape(2, 4, 5, 8, 8))
