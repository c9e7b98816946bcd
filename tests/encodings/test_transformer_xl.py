import math

import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import TokenLayout, TransformerXL, attend
from posenc.functional.sincos import offset_waves


def build(layout, heads=2, head_dim=4, **options):
    layout = TokenLayout(*layout)
    encoding = TransformerXL(layout, heads, head_dim, dtype=torch.float64, **options)
    return oracles.randomize(encoding)


def sinusoid(offset, dim, temperature):
    angles = [offset * temperature ** (-2 * n / dim) for n in range(dim // 2)]
    waves = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(waves, dtype=torch.float64)


def formula(encoding, layout):
    """The four scores of the paper, one by one."""
    _, width, prefix = layout
    dim = len(encoding.projection)

    def expected(q, k, v):
        def entry(i, j):
            score = (encoding.content_bias * k[:, :, j]).sum(-1)
            offset = oracle_checks.key_minus_query(i, j, width, prefix)
            if offset is None:
                return 0.5 * score
            waves = [sinusoid(-d, dim // 2, encoding.temperature) for d in offset]
            key = (encoding.projection @ torch.cat(waves)).unflatten(0, (encoding.num_heads, -1))
            score = score + (q[:, :, i] * key).sum(-1) + (encoding.position_bias * key).sum(-1)
            return 0.5 * score  # 4 ** -0.5

        return oracles.attention(q, k, v, oracles.build_bias(*layout, entry))[0]

    return expected


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle(layout):
    encoding = build(layout)
    oracle_checks.equals(encoding, layout, formula(encoding, layout))


def test_another_grid_has_sinusoids_of_its_own():
    encoding = build((2, 3, 0), temperature=20.0)
    oracle_checks.equals(encoding, (6, 2, 1), formula(encoding, (6, 2, 1)))


def test_the_scale_of_the_attention_reaches_all_scores():
    encoding, layout = build((2, 3, 1)), TokenLayout(2, 3, prefix=1)
    q, k, _, _ = oracles.random_qkv(7)
    terms, others = (encoding(q, k, layout, scale=scale) for scale in (1.0, 3.0))
    for term, other in zip(terms, others, strict=True):
        torch.testing.assert_close(3 * term.dense(), other.dense())


def test_one_row_equals_xlnet():
    """Whose attention is that of Transformer-XL, for keys on both sides of a query."""
    name = "transformers.models.xlnet.modeling_xlnet"
    published = pytest.importorskip(name)
    heads, head_dim, tokens = 2, 4, 5
    half = heads * head_dim // 2  # its sinusoids have as many channels as our half
    config = published.XLNetConfig(
        vocab_size=3, d_model=half, n_layer=1, n_head=heads, d_inner=4, dropout=0.0
    )
    model = published.XLNetModel(config).double()
    encoding = build((1, tokens, 0), heads, head_dim)
    attention = published.XLNetRelativeAttention(
        published.XLNetConfig(vocab_size=3, d_model=heads * head_dim, n_head=heads, dropout=0.0)
    ).double()
    with torch.no_grad():
        attention.r_w_bias.copy_(encoding.content_bias)
        attention.r_r_bias.copy_(encoding.position_bias)
    waves = model.relative_positional_encoding(tokens, tokens, bsz=2).double()
    columns = encoding.projection[:, half:].unflatten(0, (heads, head_dim))
    keys = torch.einsum("ibc,ndc->ibnd", waves, columns)
    q, k, v, cotangent = oracles.random_qkv(tokens, heads, head_dim)
    theirs = attention.rel_attn_core(*(x.permute(2, 0, 1, 3) for x in (q, k, v)), keys)
    theirs = theirs.permute(1, 2, 0, 3)
    out = attend(q, k, v, encoding(q, k, encoding.layout))
    # They compute sinusoids in float32.
    torch.testing.assert_close(out, theirs, rtol=1e-5, atol=1e-6)
    mine = torch.autograd.grad(out, [q, k, v, *encoding.parameters()], cotangent)
    leaves = [q, k, v, encoding.projection, attention.r_w_bias, attention.r_r_bias]
    wanted = torch.autograd.grad(theirs, leaves, cotangent)
    for grad, want in zip(mine, wanted, strict=True):
        if grad.shape == encoding.projection.shape:
            grad, want = grad[:, half:], want[:, half:]
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-5)


def test_on_one_row_the_row_half_has_no_effect():
    encoding, layout = build((1, 5, 0)), TokenLayout(1, 5)
    q, k, v, _ = oracles.random_qkv(5)
    before = attend(q, k, v, encoding(q, k, layout))
    with torch.no_grad():
        encoding.projection[:, :4] += 1.0
    torch.testing.assert_close(attend(q, k, v, encoding(q, k, layout)), before)


def test_no_effect_at_the_start_and_a_gradient_to_all_after_a_step():
    layout = TokenLayout(2, 3, prefix=1)
    encoding = TransformerXL(layout, 2, 4, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(7)
    out = attend(q, k, v, encoding(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert encoding.projection.grad.any()
    assert encoding.content_bias.grad.any()
    assert not encoding.position_bias.grad.any()
    torch.optim.SGD(encoding.parameters(), lr=1.0).step()
    attend(q, k, v, encoding(q, k, layout)).backward(cotangent)
    assert encoding.position_bias.grad.any()


@pytest.mark.parametrize("side", [1, 4])
def test_waves_of_offsets(side):
    waves = offset_waves(side, 6, 100.0, torch.device("cpu"), torch.float64)
    expected = [sinusoid(d, 6, 100.0) for d in range(1 - side, side)]
    torch.testing.assert_close(waves, torch.stack(expected))


def test_refuses_a_width_without_room_for_both_axes():
    with pytest.raises(ValueError, match=r"multiple of 4 .* got 3 \* 2 = 6"):
        TransformerXL(TokenLayout(2, 3), 3, 2)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
        TransformerXL(TokenLayout(2, 3), 2, 4, temperature=temperature)
