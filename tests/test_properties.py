"""What must hold on every layout, searched by hypothesis."""

import oracles
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posenc import IRPE, HumanPart, Quadratic, SwinBias, TokenLayout, attend

FAST = settings(max_examples=12, deadline=None, derandomize=True, database=None)
FEW = settings(max_examples=6, deadline=None, derandomize=True, database=None)
SMALL = st.builds(TokenLayout, st.integers(1, 5), st.integers(1, 6), st.integers(0, 3))
ANY = st.builds(TokenLayout, st.integers(1, 20), st.integers(1, 20), st.integers(0, 10))
PREFIX_PAIRS = st.sampled_from(["none", "shared", "separate"])
HEADS, HEAD_DIM = 2, 4

STATIC = {
    "irpe product": lambda layout, **o: IRPE(layout, HEADS, HEAD_DIM, mode="bias", on="qk", **o),
    "irpe cross": lambda layout, **o: IRPE(
        layout, HEADS, HEAD_DIM, mode="bias", method="cross", on="qk", share_heads=False, **o
    ),
    "irpe quantized": lambda layout, **o: IRPE(
        layout, HEADS, HEAD_DIM, mode="bias", method="quantized", **o
    ),
    "swin": lambda layout, **o: SwinBias(layout, HEADS, **o),
}
CONTEXTUAL = {
    "irpe product": lambda layout, **o: IRPE(layout, HEADS, HEAD_DIM, on="qk", **o),
    "irpe cross": lambda layout, **o: IRPE(layout, HEADS, HEAD_DIM, on="qk", method="cross", **o),
}


def bias_of(encoding, layout, q=None, k=None):
    """`[B, heads, N, N]`; q and k are zero unless given."""
    if q is None:
        q = k = torch.zeros(1, HEADS, layout.num_tokens, HEAD_DIM, dtype=torch.float64)
    terms = encoding(q, k, layout)
    bias = sum(term.dense() for term in terms).detach()
    return bias.expand(len(q), HEADS, -1, -1)


def grid_pairs(bias, layout):
    """`[B, heads, row_q, column_q, row_k, column_k]` of the pairs of patches."""
    grid = bias[..., layout.prefix :, layout.prefix :]
    return grid.unflatten(-1, layout.grid).unflatten(-3, layout.grid)


def swap_axes(layout):
    return TokenLayout(layout.width, layout.height, layout.prefix)


def swapped_order(layout):
    """Token of `layout` for each token of the layout with rows and columns exchanged."""
    grid = torch.arange(layout.num_grid).reshape(layout.grid).T.flatten() + layout.prefix
    return torch.cat([torch.arange(layout.prefix), grid])


def assert_depends_on_the_offset_only(pairs, atol):
    """Pairs one step further, down or right, have the same bias."""
    torch.testing.assert_close(
        pairs[..., 1:, :, 1:, :], pairs[..., :-1, :, :-1, :], atol=atol, rtol=0
    )
    torch.testing.assert_close(
        pairs[..., :, 1:, :, 1:], pairs[..., :, :-1, :, :-1], atol=atol, rtol=0
    )


@FAST
@given(layout=SMALL, name=st.sampled_from(sorted(STATIC)), prefix_pairs=PREFIX_PAIRS)
@example(TokenLayout(4, 6, 1), "swin", "none")
@example(TokenLayout(5, 3, 2), "irpe cross", "separate")
def test_shifting_the_grid_changes_no_relative_bias(layout, name, prefix_pairs):
    encoding = STATIC[name](layout, prefix_pairs=prefix_pairs, dtype=torch.float64)
    bias = bias_of(oracles.randomize(encoding), layout)
    assert_depends_on_the_offset_only(grid_pairs(bias, layout), atol=0)


@FAST
@given(layout=SMALL)
@example(TokenLayout(4, 6, 1))
def test_shifting_the_grid_changes_no_quadratic_attention(layout):
    """The bias is meant up to a constant per query: compare differences between keys."""
    bias = bias_of(oracles.randomize(Quadratic(layout, HEADS, dtype=torch.float64)), layout)
    pairs = grid_pairs(bias, layout)
    here = pairs.diagonal(dim1=-4, dim2=-2).diagonal(dim1=-3, dim2=-2)  # each query's own key
    assert_depends_on_the_offset_only(pairs - here[..., None, None], atol=1e-10)


@FAST
@given(layout=SMALL, name=st.sampled_from(sorted(CONTEXTUAL)))
@example(TokenLayout(4, 6, 1), "irpe product")
@example(TokenLayout(5, 3, 2), "irpe cross")
def test_shifting_the_grid_changes_no_contextual_bias_of_equal_content(layout, name):
    encoding = oracles.randomize(CONTEXTUAL[name](layout, dtype=torch.float64))
    q, k, _, _ = oracles.random_qkv(1)
    tokens = (-1, -1, layout.num_tokens, -1)
    bias = bias_of(encoding, layout, q.detach().expand(tokens), k.detach().expand(tokens))
    assert_depends_on_the_offset_only(grid_pairs(bias, layout), atol=1e-14)


def swapped_irpe(encoding, layout):
    """The same encoding with the roles of rows and columns exchanged in its tables."""
    swapped = IRPE(
        swap_axes(layout), HEADS, HEAD_DIM, mode=encoding.mode, method=encoding.method,
        on=encoding.on, share_heads=encoding.share_heads, prefix_pairs=encoding.prefix_pairs,
        dtype=torch.float64,
    )  # fmt: skip
    state = encoding.state_dict()
    if encoding.method == "cross":
        exchanged = {"rows": "cols", "cols": "rows"}
        state = {f"{k[:-4]}{exchanged[k[-4:]]}": table for k, table in state.items()}
    else:
        order = torch.arange(49).reshape(7, 7).T.flatten()
        state = {k: torch.cat([t[..., order], t[..., 49:]], -1) for k, t in state.items()}
    swapped.load_state_dict(state)
    return swapped


@FAST
@given(
    layout=SMALL,
    mode=st.sampled_from(["bias", "contextual"]),
    method=st.sampled_from(["product", "cross"]),
    prefix_pairs=PREFIX_PAIRS,
)
@example(TokenLayout(2, 5, 1), "contextual", "product", "shared")
@example(TokenLayout(5, 3, 0), "bias", "cross", "none")
def test_exchanged_axes_transpose_irpe(layout, mode, method, prefix_pairs):
    encoding = IRPE(
        layout, HEADS, HEAD_DIM, mode=mode, method=method, on="qk", share_heads=False,
        prefix_pairs=prefix_pairs, dtype=torch.float64,
    )  # fmt: skip
    oracles.randomize(encoding)
    q, k, _, _ = (t.detach() for t in oracles.random_qkv(layout.num_tokens))
    order = swapped_order(layout)
    bias = bias_of(encoding, layout, q, k)
    swapped = bias_of(
        swapped_irpe(encoding, layout), swap_axes(layout), q[:, :, order], k[:, :, order]
    )
    torch.testing.assert_close(swapped, bias[..., order, :][..., order], atol=1e-14, rtol=0)


@FAST
@given(layout=SMALL, prefix_pairs=PREFIX_PAIRS)
@example(TokenLayout(2, 5, 1), "separate")
def test_exchanged_axes_transpose_swin(layout, prefix_pairs):
    options = {"prefix_pairs": prefix_pairs, "dtype": torch.float64}
    encoding = oracles.randomize(SwinBias(layout, HEADS, **options))
    rows, columns = 2 * layout.height - 1, 2 * layout.width - 1
    table = encoding.table.detach()
    grid = table[:, : rows * columns].unflatten(-1, (rows, columns)).transpose(-2, -1)
    swapped = SwinBias(swap_axes(layout), HEADS, **options)
    swapped.load_state_dict({"table": torch.cat([grid.flatten(1), table[:, rows * columns :]], -1)})
    order = swapped_order(layout)
    expected = bias_of(encoding, layout)[..., order, :][..., order]
    assert torch.equal(bias_of(swapped, swap_axes(layout)), expected)


@FAST
@given(layout=SMALL)
@example(TokenLayout(2, 5, 1))
def test_exchanged_axes_transpose_quadratic(layout):
    encoding = oracles.randomize(Quadratic(layout, HEADS, dtype=torch.float64))
    swapped = Quadratic(swap_axes(layout), HEADS, dtype=torch.float64)
    swapped.load_state_dict(encoding.state_dict() | {"centers": encoding.centers.flip(-1)})
    order = swapped_order(layout)
    expected = bias_of(encoding, layout)[..., order, :][..., order].softmax(-1)
    actual = bias_of(swapped, swap_axes(layout)).softmax(-1)
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


@FAST
@given(layout=SMALL, name=st.sampled_from(sorted(STATIC)), prefix=st.integers(1, 5))
def test_prefix_pairs_none_shared_separate(layout, name, prefix):
    layout = TokenLayout(layout.height, layout.width, prefix)
    blocks = {}
    for prefix_pairs in ("none", "shared", "separate"):
        encoding = STATIC[name](layout, prefix_pairs=prefix_pairs, dtype=torch.float64)
        bias = bias_of(oracles.randomize(encoding), layout)
        blocks[prefix_pairs] = [
            bias[..., :prefix, prefix:], bias[..., prefix:, :prefix], bias[..., :prefix, :prefix],
        ]  # fmt: skip
    for block in blocks["none"]:
        assert (block == 0).all()
    value = blocks["shared"][0][..., :1, :1]
    assert (value != 0).all()
    for block in blocks["shared"]:
        assert torch.equal(block, value.expand_as(block))
    values = [block[..., :1, :1] for block in blocks["separate"]]
    for block, value in zip(blocks["separate"], values, strict=True):
        assert torch.equal(block, value.expand_as(block))
    assert not any(torch.equal(a, b) for a, b in [values[:2], values[1:], values[::2]])


@FAST
@given(layout=SMALL, prefix=st.integers(1, 5))
def test_prefix_pairs_of_the_quadratic_bias_are_zero(layout, prefix):
    """0 with a prefix token, at most 0 between patches: prefix keys are the farthest up."""
    layout = TokenLayout(layout.height, layout.width, prefix)
    quadratic = oracles.randomize(Quadratic(layout, HEADS, dtype=torch.float64))
    bias = bias_of(quadratic, layout)
    assert (bias[..., :prefix, :] == bias[..., :prefix, :1]).all()
    bias = bias - bias[..., :1]
    parameters = [quadratic.centers, quadratic.alpha, quadratic.strength]
    expected = oracles.quadratic_bias(*parameters, *layout.grid, prefix)
    torch.testing.assert_close(bias, expected.detach(), atol=1e-10, rtol=0)


def assert_finite(encoding, layout):
    q, k, v, cotangent = oracles.random_qkv(layout.num_tokens, HEADS, HEAD_DIM, batch=1)
    out = attend(q, k, v, oracles.randomize(encoding)(q, k, layout))
    assert out.isfinite().all()
    out.backward(cotangent)
    for tensor in (q, k, v, *encoding.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def on_any_layout(test):
    """Random layouts, and the smallest and largest."""
    for extreme in [(1, 1, 0), (1, 1, 10), (1, 20, 1), (20, 1, 0), (20, 20, 10)]:
        test = example(TokenLayout(*extreme))(test)
    return FEW(given(layout=ANY)(test))


@on_any_layout
def test_irpe_is_finite_on_any_layout(layout):
    for method in ("product", "cross", "euclidean", "quantized"):
        assert_finite(IRPE(layout, HEADS, HEAD_DIM, method=method, on="qkv").double(), layout)


@on_any_layout
def test_irpe_bias_is_finite_on_any_layout(layout):
    assert_finite(IRPE(layout, HEADS, HEAD_DIM, mode="bias", on="qk").double(), layout)


@on_any_layout
def test_swin_is_finite_on_any_layout(layout):
    assert_finite(SwinBias(layout, HEADS, prefix_pairs="separate").double(), layout)


@on_any_layout
def test_quadratic_is_finite_on_any_layout(layout):
    assert_finite(Quadratic(layout, HEADS).double(), layout)


@on_any_layout
def test_human_part_is_finite_on_any_layout(layout):
    assert_finite(HumanPart(layout, HEADS, strength=1.0).double(), layout)


@FEW
@given(old=SMALL, new=SMALL)
@example(TokenLayout(5, 5), TokenLayout(2, 2))
@example(TokenLayout(2, 2), TokenLayout(5, 6))
@example(TokenLayout(1, 1), TokenLayout(3, 4))
@example(TokenLayout(3, 4), TokenLayout(1, 1))
def test_swin_is_finite_when_resampled(old, new):
    assert_finite(SwinBias(old, HEADS, dtype=torch.float64), TokenLayout(*new.grid, old.prefix))
