"""How a backend is chosen, and what is said about it."""

from typing import get_args

import pytest
import torch
from attend_calls import DIM, HEADS, WITH_TERMS

from posenc import TokenLayout, attend, explain
from posenc.attention import BackendName
from posenc.attention.api import BACKENDS
from posenc.functional.buckets import irpe_index
from posenc.terms import DenseBias, ValueLookup

Q = torch.zeros(2, HEADS, 5, DIM)
BIAS = DenseBias(torch.zeros(1, 1, 5, 5))


def test_types_know_the_backends_that_there_are():
    assert set(get_args(BackendName)) == {"auto", *BACKENDS}


@pytest.mark.parametrize("call", [attend, explain])
def test_unknown_backend(call):
    with pytest.raises(ValueError, match="unknown attention backend 'flash'; there are: auto, "):
        call(Q, Q, Q, backend="flash")


def value_lookup():
    index = irpe_index(TokenLayout(1, 5), "product", 1.9, "shared")
    return ValueLookup(torch.zeros(1, index.num_buckets, DIM), index)


@pytest.mark.parametrize("call", [attend, explain])
def test_an_explicit_backend_never_falls_back(call):
    with pytest.raises(ValueError, match='backend="sdpa" does not compute this call: ValueLookup'):
        call(Q, Q, Q, value_lookup(), backend="sdpa")


@pytest.mark.parametrize("terms", [(), BIAS, [BIAS, value_lookup()]], ids=["none", "bias", "value"])
def test_explain_agrees_with_attend(terms):
    explanation = explain(Q, Q, Q, terms)
    assert explanation.reasons.keys() == {*WITH_TERMS, "lowrank", "triton", "flex"}
    assert explanation.reasons[explanation.choice] is None
    for backend, reason in explanation.reasons.items():
        if reason is None:
            assert explain(Q, Q, Q, terms, backend=backend).choice == backend
            assert attend(Q, Q, Q, terms, backend=backend).shape == Q.shape
        else:
            with pytest.raises(ValueError, match=reason):
                attend(Q, Q, Q, terms, backend=backend)
    chosen = attend(Q + 1, Q, Q + 2, terms, backend=explanation.choice)
    assert torch.equal(attend(Q + 1, Q, Q + 2, terms), chosen)


def test_explain_reads_well():
    text = str(explain(Q, Q, Q, value_lookup()))
    assert text.startswith("choice: tiled (value tables need the attention matrix")
    assert "reference: possible" in text
    assert "sdpa: ValueLookup needs the attention matrix" in text
