import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch
import torch.nn.functional as F

from posenc import TUPE, TokenLayout, attend
from posenc.attention import attention_matrix

T5 = {"num_buckets": 8, "max_distance": 5}


def build(layout, **options):
    return oracles.randomize(TUPE(TokenLayout(*layout), 2, 4, dtype=torch.float64, **options))


def golden_tupe(golden, **options):
    """Row 0 of its table is the score of CLS as a query, which softmax does not see."""
    sizes = golden.hyperparameters
    layout, heads = TokenLayout(1, sizes["tokens"] - 1, prefix=1), sizes["heads"]
    numbers = {"num_buckets": sizes["rel_pos_bins"], "max_distance": sizes["max_rel_pos"]}
    options = {"relative": sizes["rel_pos"], **numbers, **options}
    tupe = TUPE(layout, heads, sizes["dim"] // heads, dtype=torch.float64, **options)
    state = {
        "position": golden["pos"][1:],
        "norm_weight": golden["pos_ln.weight"],
        "norm_bias": golden["pos_ln.bias"],
        "query_weight": golden["pos_q.weight"],
        "query_bias": golden["pos_q.bias"],
        "key_weight": golden["pos_k.weight"],
        "key_bias": golden["pos_k.bias"],
        "strength": torch.ones(heads),
    }
    if tupe.relative:
        *table, prefix_key = golden["rel_table"]
        state["table_columns"] = torch.stack(table, -1)
        state["table_rows"] = torch.zeros_like(state["table_columns"])
        state["prefix_key"] = prefix_key[:, None]
    tupe.load_state_dict(state)
    return tupe, layout


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("name", golden_cases.names("tupe_"))
def test_equals_the_published_code(name, backend):
    golden = golden_cases.case(name)
    tupe, layout = golden_tupe(golden)
    qkv = F.linear(golden["x"], golden["in_proj_weight"], golden["in_proj_bias"])
    q, k, v = qkv.unflatten(-1, (3, tupe.num_heads, -1)).permute(2, 1, 3, 0, 4)
    terms = tupe(q, k, layout)
    bias, expected = sum(term.dense() for term in terms[1:])[0], golden["bias"]
    bias, expected = (b - b.mean(-1, keepdim=True) for b in (bias, expected))
    torch.testing.assert_close(bias, expected, **golden.close)
    torch.testing.assert_close(attention_matrix(q, k, v, terms), golden["probs"], **golden.close)
    out = attend(q, k, v, terms, backend=backend).permute(2, 0, 1, 3).flatten(2)
    out = F.linear(out, golden["out_proj.weight"], golden["out_proj.bias"])
    torch.testing.assert_close(out, golden["attn_out"], **golden.close)


@pytest.mark.parametrize("name", golden_cases.names("tupe_abs"))
def test_without_reset_it_is_the_plain_correlation(name):
    golden = golden_cases.case(name)
    tupe, layout = golden_tupe(golden, reset=False)
    q = torch.zeros(1, tupe.num_heads, layout.num_tokens, tupe.head_dim, dtype=torch.float64)
    bias = tupe(q, q, layout)[1].dense()[0]
    torch.testing.assert_close(bias, golden["corr_raw"][:, 1:, 1:], **golden.close)


def scored(tupe, layout, position):
    """The formula, in loops; `position` holds the vectors of these tokens."""
    width, prefix = layout[1:]
    mean, spread = position.mean(-1, keepdim=True), position.var(-1, unbiased=False, keepdim=True)
    normed = (position - mean) / (spread + 1e-5).sqrt() * tupe.norm_weight + tupe.norm_bias
    query = (normed @ tupe.query_weight.T + tupe.query_bias).unflatten(-1, (2, 4))
    key = (normed @ tupe.key_weight.T + tupe.key_bias).unflatten(-1, (2, 4))

    def relative(i, j):
        offset = oracle_checks.key_minus_query(i, j, width, prefix)
        if not tupe.relative or (offset is None and not (tupe.reset and j < prefix)):
            return 0.0
        if offset is None:
            return tupe.prefix_key[:, 0]
        row, column = (oracles.t5_bucket(d, 8, 5) for d in offset)
        return tupe.table_rows[:, row] + tupe.table_columns[:, column]

    def row(token):
        """Of the position vectors: one for all prefix tokens when they are untied."""
        return token if not tupe.reset else max(token - prefix, -1) + min(prefix, 1)

    def entry(i, j, q, k):
        if tupe.reset and i < prefix:
            return torch.zeros(1, 2, dtype=q.dtype)
        at = row(j) if tupe.reset and j < prefix else row(i)
        score = (query[at] * key[row(j)]).sum(-1) / 8**0.5 + relative(i, j)
        return (tupe.strength * score)[None]

    def expected(q, k, v):
        bias = oracles.build_bias(*layout, lambda i, j: entry(i, j, q, k))
        content = q * (2 ** (-tupe.strength / 2))[:, None, None]
        return oracles.attention(content, k, v, bias)[0]

    return expected


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_equals_the_oracle(layout, reset, relative):
    tupe = build(layout, reset=reset, relative=relative, **T5)
    oracle_checks.equals(
        tupe, layout, scored(tupe, layout, tupe.position), backends=("reference", "sdpa")
    )


@pytest.mark.parametrize("reset", [True, False])
def test_positions_are_resampled_on_another_grid(reset):
    tupe = build((2, 5, 2), reset=reset, relative=True, **T5)
    rows = 1 if reset else 2
    image = tupe.position[rows:].T.unflatten(-1, (2, 5))[None]
    image = F.interpolate(image, (4, 3), mode="bicubic", antialias=True)
    position = torch.cat([tupe.position[:rows], image[0].flatten(1).T])
    expected = scored(tupe, (4, 3, 2), position)
    q, k, v, _ = oracles.random_qkv(14)
    out = attend(q, k, v, tupe(q, k, TokenLayout(4, 3, prefix=2)))
    torch.testing.assert_close(out, expected(q, k, v), atol=1e-6, rtol=0)


def test_untied_prefix_tokens_may_be_more():
    """They share one vector."""
    tupe, layout = build((2, 3, 1)), TokenLayout(2, 3, prefix=3)
    q, k, v, _ = oracles.random_qkv(9)
    expected = scored(tupe, (2, 3, 3), tupe.position)(q, k, v)
    torch.testing.assert_close(attend(q, k, v, tupe(q, k, layout)), expected)


def test_strength_zero_has_no_effect_and_a_gradient():
    layout = TokenLayout(2, 5, prefix=1)
    tupe = TUPE(layout, 2, 4, strength=0.0, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(11)
    out = attend(q, k, v, tupe(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert (tupe.strength.grad != 0).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reset": 1}, TypeError, "TUPE: reset must be True or False, got 1"),
        ({"relative": "yes"}, TypeError, "TUPE: relative must be True or False, got 'yes'"),
        ({"num_buckets": 9}, ValueError, "TUPE: num_buckets must be even and at least 4, got 9"),
        ({"strength": "x"}, ValueError, "TUPE: strength must be a finite number, got 'x'"),
    ],
)
def test_refuses_options_that_do_not_exist(options, error, message):
    with pytest.raises(error, match=message):
        TUPE(TokenLayout(2, 3), 2, 4, **options)


def test_refuses_prefix_tokens_without_a_position():
    q, k, _, _ = oracles.random_qkv(8)
    with pytest.raises(ValueError, match=r"reset=False has positions for 1 prefix .* has 2; build"):
        build((2, 3, 1), reset=False)(q, k, TokenLayout(2, 3, prefix=2))
    with pytest.raises(ValueError, match=r"TUPE was built for 0 prefix tokens"):
        build((2, 3, 0))(q, k, TokenLayout(2, 3, prefix=2))
