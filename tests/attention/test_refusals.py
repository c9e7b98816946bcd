"""What `attend` refuses at its door, and `explain` and `attention_matrix` in the same words."""

import math
import re
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from posenc import DenseBias, attend, explain
from posenc.attention import attention_matrix

GENERATOR = torch.Generator().manual_seed(0)


def t(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=GENERATOR).to(dtype)


def nested(layout=torch.strided):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        return torch.nested.nested_tensor([t(2, 6, 4), t(2, 5, 4)], layout=layout)


Q = t(2, 6, 6, 4)
REFUSED = {
    "None": ((None, Q, Q), {}, TypeError, "query must be a tensor, got None"),
    "str": ((Q, "k", Q), {}, TypeError, "key must be a tensor, got 'k'"),
    "list": ((Q, Q, [1.0]), {}, TypeError, r"value must be a tensor, got \[1.0\]"),
    "mask": ((Q, Q, Q), {"attn_mask": "no"}, TypeError, "attn_mask must be a tensor, got 'no'"),
    "nested": ((nested(),) * 3, {}, TypeError, "query must be a dense tensor, got a nested one; c"),
    "jagged": ((nested(torch.jagged),) * 3, {}, TypeError, "query must be .* got a nested one"),
    "sparse": ((Q, Q.to_sparse(), Q), {}, TypeError, "key must be .* got a torch.sparse_coo one"),
    "float8": (
        (Q.to(torch.float8_e4m3fn),) * 3,
        {},
        TypeError,
        r"got torch.float8_e4m3fn, .*; convert them with .to\(dtype\) to one of 16, 32 or 64 bits",
    ),
    "complex": ((Q.to(torch.complex64),) * 3, {}, TypeError, "floating point .* torch.complex64"),
    "head_dim": (
        (t(2, 6, 6, 0), t(2, 6, 6, 0), Q),
        {},
        ValueError,
        r"head_dim must be at least 1, got query \[2, 6, 6, 0\] .*; pass \[B, heads, N, head_dim",
    ),
    "batch": (
        (Q, t(3, 6, 6, 4), t(3, 6, 6, 4)),
        {},
        ValueError,
        r"B and heads of .* must be equal or 1 .*, got \[2, 6, 6, 4\], \[3, 6, 6, 4\]",
    ),
    "heads": ((Q, t(2, 3, 6, 4), t(2, 3, 6, 4)), {}, ValueError, "B and heads of .* equal or 1"),
    "grouped": (
        (Q, t(2, 4, 6, 4), t(2, 4, 6, 4)),
        {"enable_gqa": True},
        ValueError,
        "the heads of key and value must divide those of the query",
    ),
    "nan": ((Q, Q, Q), {"scale": math.nan}, ValueError, "scale must be finite, got nan; leave it"),
    "inf": ((Q, Q, Q), {"scale": -math.inf}, ValueError, "scale must be finite, got -inf"),
    "scale": ((Q, Q, Q), {"scale": "auto"}, TypeError, "scale must be a number, got 'auto'"),
    "causal": ((Q, Q, Q), {"is_causal": "no"}, TypeError, "is_causal must be True or False, got"),
    "gqa": ((Q, Q, Q), {"enable_gqa": 1}, TypeError, "enable_gqa must be True or False, got 1"),
    "terms": ((Q, Q, Q, None), {}, TypeError, r"terms must be terms of encodings, or \(\), got N"),
}
each = pytest.mark.parametrize("case", REFUSED)


@each
def test_attend_refuses(case):
    arguments, options, error, message = REFUSED[case]
    with pytest.raises(error, match=f"attend: .*{message}"):
        attend(*arguments, **options)


@each
@pytest.mark.parametrize("function", [explain, attention_matrix])
def test_the_others_refuse_in_the_same_words(case, function):
    arguments, options, error, _ = REFUSED[case]
    with pytest.raises(error, match="attend: ") as refusal:
        attend(*arguments, **options)
    with pytest.raises(error, match=re.escape(str(refusal.value))):
        function(*arguments, **options)


@pytest.mark.parametrize("dropout", ["0.1", None, True])
@pytest.mark.parametrize("function", [attend, explain])
def test_dropout_must_be_a_number(function, dropout):
    with pytest.raises(TypeError, match=f"dropout_p must be a number, got {dropout!r}"):
        function(Q, Q, Q, dropout_p=dropout)


@pytest.mark.parametrize("backend", ["reference", "sdpa", "lowrank", "tiled"])
@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_no_backend_makes_numbers_of_a_scale_that_is_none(backend, scale):
    bias = DenseBias(t(1, 6, 6, 6))
    with pytest.raises(ValueError, match="scale must be finite"):
        attend(Q, Q, Q, bias, scale=scale, backend=backend)


@pytest.mark.parametrize(
    ("shapes", "options"),
    [
        (((1, 6, 6, 4), (2, 6, 6, 4)), {}),
        (((2, 1, 6, 4), (2, 1, 6, 4)), {}),
        (((2, 6, 6, 4), (2, 1, 6, 4)), {}),
        (((2, 3, 6, 4), (2, 2, 6, 4)), {"enable_gqa": True}),
        (((2, 6, 5, 4), (2, 6, 5, 3)), {}),
    ],
)
def test_what_sdpa_broadcasts_is_still_computed(shapes, options):
    k, v = (t(*shape) for shape in shapes)
    expected = torch.nn.functional.scaled_dot_product_attention(Q, k, v, **options)
    torch.testing.assert_close(attend(Q, k, v, **options), expected)
    assert explain(Q, k, v, **options).choice == "sdpa"


def test_a_number_of_any_kind_is_a_scale():
    for scale in (0.5, 1, torch.tensor(0.5)):
        expected = torch.nn.functional.scaled_dot_product_attention(Q, Q, Q, scale=scale)
        torch.testing.assert_close(attend(Q, Q, Q, scale=scale), expected)


def graphs(function, inputs):
    torch._dynamo.reset()
    count = CompileCounter()
    compiled = torch.compile(function, backend=count, dynamic=True, fullgraph=True)
    for x in inputs:
        torch.testing.assert_close(compiled(x), function(x))
    return count.frame_count


def test_a_symbolic_scale_compiles():
    """Into as many graphs as SDPA's own: no check compares it."""
    inputs = [t(2, 3, 6, width) for width in (4, 6, 10)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    plain = graphs(lambda x: sdpa(x, x, x, scale=x.shape[-1] ** -0.5), inputs)
    assert graphs(lambda x: attend(x, x, x, scale=x.shape[-1] ** -0.5), inputs) == plain
    assert graphs(lambda x: attend(x, x, x), inputs) == 1
