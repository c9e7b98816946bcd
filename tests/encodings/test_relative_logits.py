import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import RelativeLogits, TokenLayout, attend

LAYOUTS = [*layouts.LAYOUTS, (1, 1, 2)]
BACKENDS = ("reference", "sdpa", "tiled")


def build(layout, heads=2, head_dim=4, seed=0, **options):
    encoding = RelativeLogits(
        TokenLayout(*layout), heads, head_dim, dtype=torch.float64, **{"width": 3, **options}
    )
    return oracles.randomize(encoding, seed)


def entry_of_pair(i, j, layout, prefix_pairs):
    """Which entry of a profile the pair reads, None for no bias."""
    height, width, prefix = layout
    offset = oracle_checks.key_minus_query(i, j, width, prefix)
    entries = (2 * height - 1) * (2 * width - 1)
    if offset is not None:
        row, column = -offset[0], -offset[1]
        return (row + height - 1) * (2 * width - 1) + column + width - 1
    if prefix_pairs == "none":
        return None
    if prefix_pairs == "shared":
        return entries
    return entries + (2 if i < prefix and j < prefix else int(j < prefix))


def expected_entry(i, j, q, encoding, layout, table):
    """`[B, heads]`, one head and one profile after another."""
    entry = entry_of_pair(i, j, layout, encoding.prefix_pairs)
    columns = []
    for head in range(encoding.num_heads):
        total = torch.zeros(len(q), dtype=q.dtype)
        profiles = table[0 if encoding.share_heads else head]
        for profile, weights in zip(profiles, encoding.projection[head], strict=True):
            if entry is not None:
                total = total + (q[:, head, i] * weights).sum(-1) * profile[entry]
        columns.append(total)
    return torch.stack(columns, -1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("share_heads", "prefix_pairs"),
    [(True, "none"), (False, "none"), (True, "shared"), (False, "separate")],
)
def test_equals_the_oracle(layout, share_heads, prefix_pairs):
    encoding = build(layout, share_heads=share_heads, prefix_pairs=prefix_pairs)

    def entry(i, j, q, k):
        return expected_entry(i, j, q, encoding, layout, encoding.table)

    expected = oracle_checks.with_bias(entry, layout)
    oracle_checks.equals(encoding, layout, expected, backends=BACKENDS)


def test_one_row_under_a_causal_mask_equals_the_published_module():
    inkling = pytest.importorskip("transformers.models.inkling.modeling_inkling")
    tokens, layout = 6, TokenLayout(1, 6)
    encoding = build((1, 6, 0))
    published = inkling.InklingRelativeLogits(3, tokens).double()
    with torch.no_grad():
        published.proj.copy_(encoding.table[0, :, tokens - 1 :])  # offsets 0 and above
    q, k, v, cotangent = oracles.random_qkv(tokens)
    mixing = torch.einsum("bhnd,hwd->bnhw", q, encoding.projection)
    at = torch.arange(tokens)
    causal = (at[:, None] >= at)[None, None]
    bias = published(mixing, at, at).masked_fill(~causal, -torch.inf)
    want = (q @ k.mT / 2 + bias).softmax(-1) @ v  # 4 ** 0.5
    wanted = torch.autograd.grad(want, [q, k, v, encoding.projection, published.proj], cotangent)
    leaves = [q, k, v, encoding.projection, encoding.table]
    for backend in BACKENDS:
        out = attend(q, k, v, encoding(q, k, layout), attn_mask=causal, backend=backend)
        torch.testing.assert_close(out, want, atol=1e-10, rtol=0)
        *grads, of_table = torch.autograd.grad(out, leaves, cotangent)
        assert not of_table[0, :, : tokens - 1].any()
        for grad, right in zip([*grads, of_table[0, :, tokens - 1 :]], wanted, strict=True):
            torch.testing.assert_close(grad, right, atol=1e-10, rtol=0)


@pytest.mark.parametrize("used", [(7, 4, 2), (5, 2, 2), (1, 3, 2), (5, 2, 0)])
@pytest.mark.parametrize("share_heads", [True, False])
def test_each_profile_is_resampled_on_another_grid(used, share_heads):
    encoding = build((2, 5, 2), share_heads=share_heads, prefix_pairs="separate")
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*used))
    stored = encoding.table.detach().clone()
    profiles, of_prefix = encoding.table[..., :-3], encoding.table[..., -3:]
    resampled = [oracles.resample_offsets(each, (2, 5), used[:2]) for each in profiles]
    table = torch.cat([torch.stack(resampled), of_prefix], -1)
    expected = oracles.build_bias(
        *used, lambda i, j: expected_entry(i, j, q, encoding, used, table)
    )
    (term,) = encoding(q, k, TokenLayout(*used))
    bias = term.dense()
    torch.testing.assert_close(bias, expected, atol=1e-10, rtol=0)
    cotangent = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)).double()
    leaves = [q, *encoding.parameters()]
    grads = [torch.autograd.grad(each, leaves, cotangent) for each in (bias, expected)]
    for grad, want in zip(*grads, strict=True):
        torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)
    assert torch.equal(encoding.table, stored)


def test_the_scale_of_the_attention_does_not_reach_the_bias():
    encoding, layout = build((2, 3, 1)), TokenLayout(2, 3, prefix=1)
    q, k, _, _ = oracles.random_qkv(7)
    (term,), (other,) = (encoding(q, k, layout, scale=scale) for scale in (None, 3.0))
    assert torch.equal(term.dense(), other.dense())


@pytest.mark.parametrize("share_heads", [True, False])
def test_16_bit_queries_are_projected_in_float32(share_heads):
    layout = TokenLayout(2, 3)
    encoding = oracles.randomize(RelativeLogits(layout, 2, 4, share_heads=share_heads)).bfloat16()
    q = torch.randn(2, 2, 6, 4).bfloat16()
    (term,) = encoding(q, q, layout)
    (exact,) = encoding.double()(q.double(), q.double(), layout)
    assert term.dense().dtype == torch.float32
    torch.testing.assert_close(term.dense().double(), exact.dense(), atol=1e-5, rtol=1e-5)


def test_no_effect_at_the_start_and_a_gradient_to_all_after_a_step():
    layout = TokenLayout(2, 3, prefix=1)
    encoding = RelativeLogits(layout, 2, 4, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(7)
    out = attend(q, k, v, encoding(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert not encoding.projection.grad.any()
    assert encoding.table.grad.any()
    torch.optim.SGD(encoding.parameters(), lr=1.0).step()
    attend(q, k, v, encoding(q, k, layout)).backward(cotangent)
    assert encoding.projection.grad.any()


def test_the_projection_keeps_the_size_of_the_query():
    torch.manual_seed(0)
    projection = RelativeLogits(TokenLayout(2, 3), 8, 64).projection
    assert projection.shape == (8, 16, 64)
    torch.testing.assert_close(projection.std(), torch.tensor(1 / 8), atol=0.01, rtol=0)


@pytest.mark.parametrize("share_heads", [True, False])
@pytest.mark.parametrize("prefix_pairs", ["none", "shared", "separate"])
def test_shape_of_the_table(share_heads, prefix_pairs):
    encoding = build((2, 3, 1), share_heads=share_heads, prefix_pairs=prefix_pairs)
    extra = {"none": 0, "shared": 1, "separate": 3}[prefix_pairs]
    assert encoding.table.shape == (1 if share_heads else 2, 3, 15 + extra)
    assert encoding.is_sized_by_prefix == (prefix_pairs != "none")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"width": 0}, ValueError, "RelativeLogits: width must be a positive int, got 0"),
        ({"width": 1.5}, ValueError, r"RelativeLogits: width must be a positive int, got 1\.5"),
        ({"share_heads": "no"}, TypeError, "RelativeLogits: share_heads must be True or False"),
        ({"prefix_pairs": "all"}, ValueError, "RelativeLogits: prefix_pairs must be one of 'none'"),
    ],
)
def test_refuses_options_that_are_none(options, error, message):
    with pytest.raises(error, match=message):
        RelativeLogits(TokenLayout(2, 3), 2, 4, **options)


def test_refuses_a_head_of_another_width():
    q = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"head_dim=4, but q has 2 heads of width 8"):
        build((2, 3, 0))(q, q, TokenLayout(2, 3))


def test_refuses_a_table_of_another_grid():
    state = build((2, 3, 0)).state_dict()
    with pytest.raises(RuntimeError, match="was made for a 2x3 grid"):
        build((3, 2, 0)).load_state_dict(state)
