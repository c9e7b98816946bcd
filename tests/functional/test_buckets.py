import math

import golden_cases
import oracles
import pytest
import torch

from posenc import TokenLayout
from posenc.functional.buckets import irpe_index, piecewise_index, swin_index
from posenc.pairs import PairIndex

METHODS = {
    "product": "irpe_buckets_product",
    "euclidean": "irpe_buckets_euc",
    "quantized": "irpe_buckets_quant",
    "rows": "irpe_buckets_cross_rows",
    "cols": "irpe_buckets_cross_cols",
}
LAYOUTS = [(2, 5, 0), (7, 4, 1), (1, 6, 2), (5, 1, 5), (1, 1, 3)]


@pytest.mark.parametrize("ratio", [1.9, 0.9, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("kind", ["int", "float"])
def test_piecewise_equals_the_published_code(kind, ratio):
    golden = golden_cases.case("irpe_piecewise")
    x = golden[f"{kind}_x_r{ratio}"]
    x = x.to(torch.int64) if kind == "int" else x.to(torch.float32)
    assert torch.equal(piecewise_index(x, ratio), golden[f"{kind}_g_r{ratio}"])


@pytest.mark.parametrize("ratio", [0.5, 0.7, 1.5, 1.9, 2.5, 3.3, 4.5, 7.5])
def test_piecewise_equals_the_formula(ratio):
    """Half-integer ratios have exact ties, such as g(6) at ratio 1.5."""
    x = torch.arange(-130, 131)
    expected = torch.tensor([oracles.piecewise(value, ratio) for value in x.tolist()])
    assert torch.equal(piecewise_index(x, ratio), expected)
    assert torch.equal(piecewise_index(x.to(torch.float32), ratio), expected)


def test_piecewise_rounds_half_to_even_and_truncates_the_clip():
    assert piecewise_index(torch.tensor([-2.5, -1.5, 0.5, 1.5, 2.5]), 3.0).tolist() == [
        -2, -2, 0, 2, 2,
    ]  # fmt: skip
    far = torch.tensor([-(10**6), 10**6])
    assert piecewise_index(far, 1.9).tolist() == [-3, 3]  # clipped at 3.8, then truncated
    assert piecewise_index(far, 2.0).tolist() == [-4, 4]


@pytest.mark.parametrize("method", METHODS)
def test_irpe_buckets_equal_the_published_code(method):
    golden = golden_cases.case(METHODS[method])
    counts = golden.hyperparameters["num_buckets_including_extra"]
    assert len(golden.arrays) == 51
    for name, expected in golden.arrays.items():
        _, ratio, height, width, skip = name.split("_")
        layout = TokenLayout(int(height[1:]), int(width[1:]), prefix=int(skip[4:]))
        index = irpe_index(layout, method, float(ratio[1:]), "shared")
        assert torch.equal(index.dense(), expected), name
        assert index.num_buckets == counts[f"{ratio}_{skip}"], name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix_pairs", ["none", "shared", "separate"])
@pytest.mark.parametrize("method", METHODS)
def test_irpe_buckets_equal_the_oracle(method, prefix_pairs, layout):
    height, width, prefix = layout
    index = irpe_index(TokenLayout(*layout), method, 1.9, prefix_pairs)
    spare = oracles.irpe_buckets(method, 1.9)
    expected = [
        [
            oracles.irpe_bucket(i, j, width, prefix, method, 1.9, prefix_pairs)
            for j in range(prefix + height * width)
        ]
        for i in range(prefix + height * width)
    ]
    expected = torch.tensor([[spare if b is None else b for b in row] for row in expected])
    assert torch.equal(index.dense(), expected)
    extra = {"none": 1, "shared": 1, "separate": 3}[prefix_pairs] if prefix else 0
    assert index.num_buckets == spare + extra


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix_pairs", ["none", "shared", "separate"])
def test_swin_buckets_equal_the_oracle(prefix_pairs, layout):
    height, width, prefix = layout
    index = swin_index(TokenLayout(*layout), prefix_pairs)
    spare = (2 * height - 1) * (2 * width - 1)
    expected = [
        [
            oracles.swin_bucket(i, j, height, width, prefix, prefix_pairs)
            for j in range(prefix + height * width)
        ]
        for i in range(prefix + height * width)
    ]
    expected = torch.tensor([[spare if b is None else b for b in row] for row in expected])
    assert torch.equal(index.dense(), expected)
    extra = {"none": 1, "shared": 1, "separate": 3}[prefix_pairs] if prefix else 0
    assert index.num_buckets == spare + extra


@pytest.mark.parametrize("name", golden_cases.names("swin_window"))
def test_swin_buckets_equal_the_published_code(name):
    golden = golden_cases.case(name)
    layout = TokenLayout(*golden.hyperparameters["window_h_w"])
    assert torch.equal(swin_index(layout, "none").dense(), golden["index"])


def test_swin_buckets_on_a_person_crop():
    golden = golden_cases.case("transreid_relative_4x2")
    index = swin_index(TokenLayout(4, 2, prefix=1), "none").dense()
    assert torch.equal(index[1:, 1:], golden["index"])


def test_a_grid_is_given_and_not_guessed():
    """The published code reads 16x8 patches and CLS as 11x11 patches and 8 prefix tokens."""
    tokens = 16 * 8 + 1
    side = math.isqrt(tokens)
    guessed = irpe_index(TokenLayout(side, side, prefix=tokens - side**2), "product", 1.9, "shared")
    given = irpe_index(TokenLayout(16, 8, prefix=1), "product", 1.9, "shared").dense()
    assert guessed.layout == TokenLayout(11, 11, prefix=8)
    assert guessed.dense().shape == given.shape == (129, 129)
    assert (given == 49).sum() == 2 * 129 - 1  # one row and one column of prefix pairs
    assert not torch.equal(guessed.dense(), given)
    below, right = given[1 + 8, 1], given[1 + 1, 1]  # queries one row below, one column right
    assert (below, right) == (4 * 7 + 3, 3 * 7 + 4)


@pytest.mark.parametrize("order", [(0, 1, 5), (5, 0, 1)])
def test_prefix_is_part_of_what_is_remembered(order):
    """The published cache forgets the number of prefix tokens."""
    for prefix in order:
        index = irpe_index(TokenLayout(3, 2, prefix), "rows", 1.9, "shared")
        assert index.dense().shape == (prefix + 6, prefix + 6)
        assert (index.dense() == 7).sum() == (prefix + 6) ** 2 - 36


def test_prefix_pairs_is_part_of_what_is_remembered():
    layout = TokenLayout(2, 3, prefix=2)
    counts = [irpe_index(layout, "cols", 1.9, p).num_buckets for p in ("shared", "separate")]
    assert counts == [8, 10]
    counts = [swin_index(layout, p).num_buckets for p in ("separate", "shared")]
    assert counts == [18, 16]


@pytest.mark.parametrize("method", ["euclidean", "quantized"])
@pytest.mark.parametrize("ratio", [1.9, 3.0, 20.0])
def test_distances_never_use_the_lower_half_of_their_table(method, ratio):
    """A distance is not negative: int(2 ratio) of 2 int(2 ratio) + 1 rows are never read."""
    index = irpe_index(TokenLayout(14, 9), method, ratio, "shared")
    middle = int(2 * ratio)
    assert index.num_buckets == 2 * middle + 1
    assert index.dense().min() == middle


@pytest.mark.parametrize("method", METHODS)
def test_only_distances_are_symmetric(method):
    index = irpe_index(TokenLayout(2, 5, prefix=1), method, 1.9, "shared").dense()
    assert torch.equal(index, index.T) == (method in ("euclidean", "quantized"))


@pytest.mark.parametrize("prefix_pairs", ["shared", "separate"])
def test_transposed_index_exchanges_query_and_key(prefix_pairs):
    index = swin_index(TokenLayout(2, 5, prefix=2), prefix_pairs)
    assert torch.equal(index.T.dense(), index.dense().T)
    assert torch.equal(index.T.T.dense(), index.dense())
    assert index.T.num_buckets == index.num_buckets
    assert not torch.equal(index.T.dense(), index.dense())


def test_dense_is_read_from_the_offset_table():
    buckets = torch.arange(15).reshape(3, 5)
    index = PairIndex(TokenLayout(2, 3, prefix=1), buckets, 18, prefix_buckets=(15, 16, 17))
    dense = index.dense()
    assert dense.dtype == torch.int64
    assert dense[0].tolist() == [17] + [15] * 6
    assert dense[:, 0].tolist() == [17] + [16] * 6
    # query (1, 0), key (0, 2): offset (1, -2)
    assert dense[1 + 3, 1 + 2] == buckets[1 + 1, -2 + 2]


@pytest.mark.parametrize(
    ("shape", "prefix", "prefix_buckets", "message"),
    [
        ((3, 3), 0, None, r"\(3, 5\).*\(3, 3\)"),
        ((5, 3), 0, None, r"\(3, 5\).*\(5, 3\)"),
        ((3, 5), 1, None, "prefix"),
        ((3, 5), 0, (0, 0, 0), "prefix"),
    ],
)
def test_index_refuses_what_does_not_fit_its_layout(shape, prefix, prefix_buckets, message):
    buckets = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        PairIndex(TokenLayout(2, 3, prefix), buckets, 1, prefix_buckets)
