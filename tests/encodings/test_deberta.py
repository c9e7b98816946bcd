import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import DeBERTa, TokenLayout, attend


def build(layout, heads=2, head_dim=4, **options):
    options = {"clip": 2, **options}
    encoding = DeBERTa(TokenLayout(*layout), heads, head_dim, dtype=torch.float64, **options)
    return oracles.randomize(encoding)


def entry_of(offset, clip):
    row, column = (max(-clip, min(clip - 1, d)) + clip for d in offset)
    return row * 2 * clip + column


def formula(encoding, layout):
    """The three scores of a pair together, divided by the root of 3 times the width, which is 4."""
    _, width, prefix = layout
    root = {0.0: 4, 1.0: 12, 2.0: 36}[encoding.strength] ** 0.5

    def expected(q, k, v):
        def entry(i, j):
            score = (q[:, :, i] * k[:, :, j]).sum(-1)
            if oracle_checks.key_minus_query(i, j, width, prefix) is not None:
                there = oracle_checks.key_minus_query(j, i, width, prefix)  # query i minus key j
                back = oracle_checks.key_minus_query(i, j, width, prefix)
                keys = encoding.table_k[:, entry_of(there, encoding.clip)]
                queries = encoding.table_q[:, entry_of(back, encoding.clip)]
                score = score + (q[:, :, i] * keys + k[:, :, j] * queries).sum(-1)
            return score / root

        return oracles.attention(q, k, v, oracles.build_bias(*layout, entry), scale=0.0)[0]

    return expected


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("strength", [1.0, 0.0, 2.0])
def test_equals_the_oracle(layout, strength):
    encoding = build(layout, strength=strength)
    oracle_checks.equals(encoding, layout, formula(encoding, layout))


def test_another_grid_reads_the_border_of_the_tables():
    encoding = build((2, 3, 0))
    oracle_checks.equals(encoding, (7, 2, 1), formula(encoding, (7, 2, 1)))


def test_the_scale_of_the_attention_reaches_all_three_scores():
    """Half of it is the same as half the queries, those of the table too."""
    encoding, layout = build((2, 3, 1)), TokenLayout(2, 3, prefix=1)
    q, k, v, _ = oracles.random_qkv(7)
    halved = attend(q, k, v, encoding(q, k, layout, scale=0.5), scale=0.5)
    with torch.no_grad():
        encoding.table_q.mul_(0.5)
    expected = attend(q / 2, k, v, encoding(q / 2, k, layout, scale=1.0), scale=1.0)
    torch.testing.assert_close(halved, expected)


@pytest.mark.parametrize(("clip", "of_key"), [(6, True), (2, False)])
def test_one_row_equals_hugging_face(clip, of_key):
    """Their keys read the opposite offset: rows are in reverse, and the ends clip otherwise."""
    name = "transformers.models.deberta_v2.modeling_deberta_v2"
    published = pytest.importorskip(name)
    heads, width, tokens = 2, 8, 5
    config = published.DebertaV2Config(
        hidden_size=width,
        num_attention_heads=heads,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        position_buckets=-1,
        max_relative_positions=clip,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    attention = published.DisentangledSelfAttention(config).double()
    for parameter in attention.pos_query_proj.parameters():
        parameter.requires_grad_(False).mul_(of_key)
    x = torch.randn(2, tokens, width, dtype=torch.float64)
    embeddings = torch.randn(2 * clip, width, dtype=torch.float64)
    theirs, _ = attention(x, torch.ones(2, 1, tokens, tokens), rel_embeddings=embeddings)

    def split(y):
        return y.unflatten(-1, (heads, -1)).transpose(-2, -3)

    encoding = DeBERTa(TokenLayout(1, tokens), heads, width // heads, clip=clip, dtype=x.dtype)
    row = slice(2 * clip * clip, 2 * clip * (clip + 1))  # of row offset 0
    with torch.no_grad():
        encoding.table_k[:, row] = split(attention.pos_key_proj(embeddings))
        queries = split(attention.pos_query_proj(embeddings))
        encoding.table_q[:, row] = queries.flip(1).roll(1, 1)  # of offset -d for that of d
    projections = (attention.query_proj, attention.key_proj, attention.value_proj)
    q, k, v = (split(project(x)) for project in projections)
    out = attend(q, k, v, encoding(q, k, encoding.layout)).transpose(1, 2).flatten(2)
    # They take the root of the width in float32.
    torch.testing.assert_close(out, theirs, rtol=1e-6, atol=1e-6)
    cotangent = torch.randn(theirs.shape, dtype=torch.float64)
    leaves = [project.weight for project in projections]
    wanted = torch.autograd.grad(theirs, leaves, cotangent)
    grads = torch.autograd.grad(out, leaves, cotangent)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strength", [1, 0])
def test_start(strength):
    layout = TokenLayout(2, 3, prefix=1)
    encoding = DeBERTa(layout, 2, 4, strength=strength, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(7)
    out = attend(q, k, v, encoding(q, k, layout))
    expected = attend(q, k, v, scale=12**-0.5 if strength else 0.5)
    torch.testing.assert_close(out, expected, atol=1e-14, rtol=0)
    assert encoding.changes_at_start() == bool(strength)
    out.backward(cotangent)
    assert encoding.table_k.grad.any()
    assert encoding.table_q.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0}, "DeBERTa: clip must be a positive int, got 0"),
        ({"strength": float("nan")}, "DeBERTa: strength must be a finite number, got nan"),
    ],
)
def test_refuses_options_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        DeBERTa(TokenLayout(2, 3), 2, 4, **options)
