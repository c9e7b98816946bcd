"""Terms that rewrite the call, through every backend: against formulas that share no code."""

import oracles
import pytest
import torch

from posenc import TokenLayout, attend, explain
from posenc.attention import attention_matrix
from posenc.functional.buckets import irpe_index, swin_index
from posenc.term_maps import map_tensors
from posenc.terms import (
    ContentScale,
    DenseBias,
    LookupBias,
    LowRankBias,
    MatrixRotation,
    Mixture,
    Rotation,
    ValueLookup,
)

BATCH, HEADS, WIDTH, VALUES = 2, 3, 8, 5
LAYOUTS = [(2, 5, 0), (4, 3, 1), (1, 6, 2), (3, 2, 5)]


class Terms:
    """Random float64 tensors of one layout, and the terms and formulas made of them."""

    def __init__(self, layout, dtype=torch.float64):
        self.layout, self.dtype, self.leaves = TokenLayout(*layout), dtype, []
        tokens = self.layout.num_tokens
        self.q, self.k = (self.leaf(BATCH, HEADS, tokens, WIDTH) for _ in range(2))
        self.v = self.leaf(BATCH, HEADS, tokens, VALUES)

    def leaf(self, *shape):
        tensor = torch.randn(shape, dtype=torch.float64).to(self.dtype).requires_grad_()
        self.leaves.append(tensor)
        return tensor

    def rotation(self, interleaved, pairs=WIDTH // 2, batch=1, heads=1):
        """Not of the unit circle: a backend must not assume that."""
        shape = (batch, heads, self.layout.num_tokens, pairs)
        return Rotation(self.leaf(*shape), self.leaf(*shape), interleaved)

    def matrices(self, blocks=2, width=3, batch=1, heads=1):
        """Not orthogonal, for the same reason."""
        tokens = self.layout.num_tokens
        return MatrixRotation(self.leaf(batch, heads, tokens, blocks, width, width))

    def static(self):
        index = swin_index(self.layout, "separate")
        return LookupBias(self.leaf(1, HEADS, 1, index.num_buckets), index)

    def contextual(self):
        index = irpe_index(self.layout, "product", 1.9, "shared")
        tokens = self.layout.num_tokens
        return LookupBias(self.leaf(BATCH, HEADS, tokens, index.num_buckets), index, "key")

    def thin(self):
        tokens = self.layout.num_tokens
        return LowRankBias(self.leaf(1, HEADS, tokens, 2), self.leaf(1, 1, tokens, 2))

    def values(self):
        index = irpe_index(self.layout, "rows", 1.9, "shared")
        return ValueLookup(self.leaf(HEADS, index.num_buckets, VALUES), index)


def softmax(q, k, scale, bias=0.0):
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * scale + bias
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def plain(t, bias=0.0, q=None, k=None, scale=WIDTH**-0.5):
    return softmax(t.q if q is None else q, t.k if k is None else k, scale, bias)


def turn(t, rotation, x):
    return oracles.turned(x, rotation.cos, rotation.sin, rotation.interleaved)


def multiply(t, term, x):
    """Block by block, channel by channel."""
    blocks, width = term.matrices.shape[3:5]
    channels = []
    for block in range(blocks):
        part = x[..., block * width : (block + 1) * width]
        rows = (term.matrices[..., block, row, :] for row in range(width))
        channels += [(row * part).sum(-1) for row in rows]
    return torch.cat([torch.stack(channels, -1), x[..., blocks * width :]], -1)


def rotation(interleaved, pairs=WIDTH // 2, **shape):
    def build(t):
        term, bias = t.rotation(interleaved, pairs, **shape), t.static()
        return (bias, term), plain(t, bias.dense(), turn(t, term, t.q), turn(t, term, t.k))

    return build


def two_rotations(t):
    first, second = t.rotation(True), t.rotation(False, pairs=2, heads=HEADS)
    q, k = (turn(t, second, turn(t, first, x)) for x in (t.q, t.k))
    return (first, second), plain(t, 0.0, q, k)


def matrices(**shape):
    def build(t):
        term, bias = t.matrices(**shape), t.static()
        return (bias, term), plain(t, bias.dense(), multiply(t, term, t.q), multiply(t, term, t.k))

    return build


def turns_in_the_order(matrices_first):
    def build(t):
        pairs, blocks, bias = t.rotation(True), t.matrices(heads=HEADS), t.thin()
        if matrices_first:
            q, k = (turn(t, pairs, multiply(t, blocks, x)) for x in (t.q, t.k))
            return (blocks, bias, pairs), plain(t, bias.dense(), q, k)
        q, k = (multiply(t, blocks, turn(t, pairs, x)) for x in (t.q, t.k))
        return (pairs, bias, blocks), plain(t, bias.dense(), q, k)

    return build


def matrices_and_the_rest(t):
    """Cosines come before the turn, and the other attention turns by matrices of its own."""
    gate, first, second = t.leaf(1, HEADS, 1, 1), t.matrices(), t.matrices(1, WIDTH, heads=HEADS)
    usual = plain(t, 0.0, *(multiply(t, first, oracles.unit(x)) for x in (t.q, t.k)), scale=3.0)
    other = plain(t, 0.0, *(multiply(t, second, x) for x in (t.q, t.k)))
    terms = (first, Mixture(gate, (second,)), ContentScale(3.0, cosine=True))
    return terms, (1 - gate) * usual + gate * other


def scale_by_number(t):
    bias = t.contextual()
    return (ContentScale(0.3), bias, ContentScale(2.0)), plain(t, bias.dense(), scale=0.6 * 8**-0.5)


def scale_by_head(t):
    factor, bias = t.leaf(1, HEADS, 1, 1), t.thin()
    return (ContentScale(factor), bias), plain(t, bias.dense(), t.q * factor)


def scale_by_query(t):
    factor = t.leaf(BATCH, 1, t.layout.num_tokens, 1)
    return (ContentScale(factor),), plain(t, 0.0, t.q * factor)


def positions_only(t):
    bias = t.static()
    return (ContentScale(0.0), bias), plain(t, bias.dense(), scale=0.0)


def cosine(t):
    """The scale of the call has no part in it, and the order of terms neither."""
    factor, bias, term = t.leaf(1, HEADS, 1, 1), t.static(), t.rotation(True)
    q, k = (turn(t, term, oracles.unit(x)) for x in (t.q, t.k))
    terms = (ContentScale(factor), term, ContentScale(3.0, cosine=True), bias)
    return terms, softmax(q * factor, k, 3.0, bias.dense())


def mixture(t):
    gate, own, other = t.leaf(1, HEADS, 1, 1), t.contextual(), t.static()
    usual, positional = plain(t, own.dense()), plain(t, other.dense(), scale=0.0)
    terms = (own, Mixture(gate, (ContentScale(0.0), other)))
    return terms, (1 - gate) * usual + gate * positional


def mixture_of_all(t):
    """The other attention sees the queries before the rotation, and has a mixture of its own."""
    gate, inner = t.leaf(BATCH, 1, t.layout.num_tokens, 1), t.leaf(1, 1, 1, 1)
    first, second, bias, thin = t.rotation(True), t.rotation(False), t.static(), t.thin()
    usual = plain(t, 0.0, turn(t, first, t.q), turn(t, first, t.k))
    outer = plain(t, bias.dense(), turn(t, second, t.q), turn(t, second, t.k))
    innermost = plain(t, thin.dense())
    terms = (first, Mixture(gate, (second, bias, Mixture(inner, (thin,)))))
    return terms, (1 - gate) * usual + gate * ((1 - inner) * outer + inner * innermost)


CASES = {
    "rotation, pairs": rotation(True),
    "rotation, halves": rotation(False),
    "rotation, some channels by head": rotation(False, pairs=3, heads=HEADS),
    "rotation by image": rotation(True, pairs=1, batch=BATCH, heads=HEADS),
    "two rotations": two_rotations,
    "matrices of some channels": matrices(heads=HEADS),
    "matrices of all channels by image": matrices(blocks=1, width=WIDTH, batch=BATCH),
    "rotation, then matrices": turns_in_the_order(False),
    "matrices, then rotation": turns_in_the_order(True),
    "matrices and the rest": matrices_and_the_rest,
    "scale by number": scale_by_number,
    "scale by head": scale_by_head,
    "scale by query": scale_by_query,
    "positions only": positions_only,
    "cosine": cosine,
    "mixture": mixture,
    "mixture of all": mixture_of_all,
}


def possible(t, terms):
    reasons = explain(t.q, t.k, t.v, terms).reasons
    return [name for name, reason in reasons.items() if reason is None]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_backend_equals_the_formula(case, layout):
    t = Terms(layout)
    terms, weights = CASES[case](t)
    expected = weights @ t.v
    cotangent = torch.randn(expected.shape, dtype=torch.float64)
    want = torch.autograd.grad(expected, t.leaves, cotangent, allow_unused=True)
    backends = [*possible(t, terms), "auto"]
    assert {"reference", "sdpa"} <= set(backends)
    for backend in backends:
        out = attend(t.q, t.k, t.v, terms, backend=backend)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        got = torch.autograd.grad(out, t.leaves, cotangent, allow_unused=True)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(_or_zeros(mine), _or_zeros(theirs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(attention_matrix(t.q, t.k, t.v, terms), weights)


def _or_zeros(grad):
    return torch.zeros((), dtype=torch.float64) if grad is None else grad


def test_tables_for_values_stay_with_the_usual_attention():
    t = Terms((2, 3, 1))
    gate, table, bias = t.leaf(1, HEADS, 1, 1), t.values(), t.static()
    terms = (table, t.rotation(True), Mixture(gate, (ContentScale(0.0), bias)))
    q, k = (turn(t, terms[1], x) for x in (t.q, t.k))
    usual, other = plain(t, 0.0, q, k), plain(t, bias.dense(), scale=0.0)
    buckets = table.index.dense()
    looked_up = torch.stack(
        [
            torch.stack([usual[:, h, i] @ table.table[h, buckets[i]] for i in range(7)], 1)
            for h in range(HEADS)
        ],
        1,
    )
    expected = (1 - gate) * (usual @ t.v + looked_up) + gate * (other @ t.v)
    for backend in ("reference", "auto"):
        out = attend(t.q, t.k, t.v, terms, backend=backend)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask", ["bool", "float"])
def test_masks_hold_in_both_attentions(mask):
    t = Terms((2, 3, 1))
    terms, _ = mixture(t)
    keep = torch.rand(BATCH, 1, 7, 7) > 0.3
    keep[:, :, :, 0] = True
    added = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -torch.inf)
    gate, own, other = terms[1].gate, terms[0], terms[1].terms[1]
    usual = plain(t, own.dense() + added)
    positional = plain(t, other.dense() + added, scale=0.0)
    expected = ((1 - gate) * usual + gate * positional) @ t.v
    out = attend(t.q, t.k, t.v, terms, attn_mask=keep if mask == "bool" else added)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_each_part_of_a_mixture_drops_its_own_weights():
    t = Terms((4, 3, 1))
    gate, bias = t.leaf(1, HEADS, 1, 1), t.static()
    terms = (t.rotation(True), Mixture(gate, (ContentScale(0.0), bias)))
    options = {"dropout_p": 0.4, "backend": "reference"}
    torch.manual_seed(3)
    out = attend(t.q, t.k, t.v, terms, **options)
    torch.manual_seed(3)
    usual = attend(t.q, t.k, t.v, terms[:1], **options)
    other = attend(t.q, t.k, t.v, terms[1].terms, **options)
    torch.testing.assert_close(out, (1 - gate) * usual + gate * other)
    assert not torch.allclose(usual, attend(t.q, t.k, t.v, terms[:1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_in_16_bit_errors_are_those_of_rounding(case, dtype):
    """Turned or scaled queries are rounded once, as those of the model are."""
    exact = Terms((4, 3, 1))
    terms, weights = CASES[case](exact)
    expected = weights @ exact.v
    q, k, v = (x.detach().to(dtype) for x in (exact.q, exact.k, exact.v))
    with torch.no_grad():
        as_float = tuple(_floats(term) for term in terms)
        out = attend(q, k, v, as_float)
        again = attend(*(x.double() for x in (q, k, v)), terms)
    assert out.dtype == dtype
    rounding = torch.finfo(dtype).eps
    inputs = (again - expected).abs().max()
    assert (out.double() - expected).abs().max() <= 2 * inputs + 40 * rounding


def _floats(term):
    return map_tensors(term, lambda _, tensor: tensor.detach().float())


def test_autocast_casts_before_terms_rewrite():
    t = Terms((2, 5, 0), torch.float32)
    terms, _ = CASES["mixture of all"](t)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(t.q, t.k, t.v, terms)
    expected = attend(*(x.bfloat16() for x in (t.q, t.k, t.v)), terms)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("case", CASES)
def test_compiles_as_one_graph(case):
    torch.compiler.reset()
    t = Terms((4, 3, 1))
    terms, _ = CASES[case](t)

    def call(q, k, v):
        return attend(q, k, v, terms)

    function = torch.compile(call, fullgraph=True, backend="eager")
    expected = attend(t.q, t.k, t.v, terms)
    torch.testing.assert_close(function(t.q, t.k, t.v), expected, rtol=1e-10, atol=1e-10)


def test_explain_names_both_attentions_of_a_mixture():
    t = Terms((2, 5, 0))
    terms, _ = mixture(t)
    with torch.no_grad():
        explanation = explain(t.q, t.k, t.v, terms)
    assert explanation.choice.count(" + ") == 1
    assert explanation.reasons["lowrank"] is not None  # the other part has no thin bias
    alone = explain(t.q, t.k, t.v, (t.rotation(True),))
    assert (alone.choice, alone.why) == ("sdpa", "plain attention")


# Bad input


def calls(t, *terms):
    return attend(t.q, t.k, t.v, terms)


def test_a_rotation_wider_than_the_head():
    t = Terms((2, 3, 0))
    with pytest.raises(ValueError, match=r"turns 10 channels .* a head_dim of 8"):
        calls(t, t.rotation(True, pairs=5))


@pytest.mark.parametrize("what", ["tokens", "heads", "batch", "sin"])
def test_a_rotation_of_other_sizes(what):
    t = Terms((2, 3, 0))
    sizes = {"batch": 1, "heads": 1, "tokens": 6}
    if what != "sin":
        sizes[what] = 4
    cos = torch.ones(*sizes.values(), 4, dtype=torch.float64)
    sin = torch.ones(1, 1, 6, 3, dtype=torch.float64) if what == "sin" else cos
    name = "sin" if what == "sin" else "cos"
    with pytest.raises(ValueError, match=rf"Rotation\.{name} must have shape"):
        calls(t, Rotation(cos, sin))


@pytest.mark.parametrize("factor", [torch.ones(3), torch.ones(1, 3, 1, 2), torch.ones(1, 2, 1, 1)])
def test_a_scale_of_another_shape(factor):
    with pytest.raises(ValueError, match=r"ContentScale\.factor must have shape"):
        calls(Terms((2, 3, 0)), ContentScale(factor.double()))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "1", None])
def test_a_scale_that_is_no_finite_number(factor):
    with pytest.raises(ValueError, match=r"factor must be a tensor or a finite number"):
        calls(Terms((2, 3, 0)), ContentScale(factor))


def test_a_gate_of_another_shape():
    with pytest.raises(ValueError, match=r"Mixture\.gate must have shape"):
        calls(Terms((2, 3, 0)), Mixture(torch.ones(3, dtype=torch.float64), ()))


def test_two_mixtures():
    t = Terms((2, 3, 0))
    gate = t.leaf(1, 1, 1, 1)
    with pytest.raises(ValueError, match="attend: terms: 2 mixtures"):
        calls(t, Mixture(gate, ()), Mixture(gate, ()))
    with pytest.raises(ValueError, match=r"Mixture\.terms: 2 mixtures"):
        calls(t, Mixture(gate, (Mixture(gate, ()), Mixture(gate, ()))))


def test_a_term_inside_a_mixture_that_does_not_fit():
    t = Terms((2, 3, 0))
    gate, bias = t.leaf(1, 1, 1, 1), torch.ones(1, 1, 7, 7, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"DenseBias\.bias must have shape"):
        calls(t, Mixture(gate, (DenseBias(bias),)))
    with pytest.raises(TypeError, match=r"Mixture\.terms must be .*, got Tensor"):
        calls(t, Mixture(gate, (bias,)))
