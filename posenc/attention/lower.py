"""Calls with terms that rewrite the call, as calls whose terms every backend knows.

Backends compute scores with biases, and value lookups: a vocabulary that does not grow. What turns
queries and keys, scales the content or mixes two attentions happens here, once, before a backend is
chosen. A new such term is a class in `posenc/terms/calls.py` and a function in this file.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.terms import CallTerm, ContentScale, MatrixRotation, Mixture, Rotation


class Part(NamedTuple):
    """A call that backends know, and its weight in the result: 1 where None."""

    call: AttentionCall
    weight: Tensor | None = None  # [1 or B, 1 or heads, 1 or N, 1]


def lower(call: AttentionCall) -> tuple[Part, ...]:
    """The parts whose weighted sum is the call: one, and one more for a mixture in it."""
    if not call.terms:
        return (Part(call),)
    rewriting = [term for term in call.terms if isinstance(term, CallTerm)]
    if not rewriting:
        return (Part(call),)
    usual = replace(call, terms=tuple(t for t in call.terms if not isinstance(t, CallTerm)))
    scales = [term for term in rewriting if isinstance(term, ContentScale)]
    if any(term.cosine for term in scales):  # first: it replaces the scale that factors multiply
        usual = _take_cosines(usual)
    for scale in scales:
        usual = _scale_content(scale, usual)
    for term in rewriting:  # in their order: turns need not commute
        if isinstance(term, (Rotation, MatrixRotation)):
            usual = _turn(term, usual)
    for term in rewriting:
        if isinstance(term, Mixture):  # one at most, `check_terms` saw to it
            # The other attention starts from the queries and keys as they were.
            return _mix(term.gate, usual, replace(call, terms=term.terms))
    return (Part(usual),)


def combine(parts: tuple[Part, ...], compute: Callable[[AttentionCall], Tensor]) -> Tensor:
    """The weighted sum of what `compute` gives of each part, rounded once."""
    if len(parts) == 1:
        return compute(parts[0].call)
    results = [compute(part.call) for part in parts]
    weighted = (p.weight * r for p, r in zip(parts, results, strict=True) if p.weight is not None)
    return functools.reduce(operator.add, weighted).to(results[0].dtype)


def _mix(gate: Tensor, usual: AttentionCall, other: AttentionCall) -> tuple[Part, ...]:
    gate = gate.to(usual.dtype)
    weighted = (
        Part(part.call, gate if part.weight is None else gate * part.weight)
        for part in lower(other)
    )
    return Part(usual, 1 - gate), *weighted


def _turn(term: Rotation | MatrixRotation, call: AttentionCall) -> AttentionCall:
    return replace(call, query=term.apply(call.query), key=term.apply(call.key))


def _take_cosines(call: AttentionCall) -> AttentionCall:
    def unit(x: Tensor) -> Tensor:
        return F.normalize(x.to(call.dtype), dim=-1).to(x.dtype)

    return replace(call, query=unit(call.query), key=unit(call.key), given_scale=1.0)


def _scale_content(term: ContentScale, call: AttentionCall) -> AttentionCall:
    if not isinstance(term.factor, Tensor):
        return replace(call, given_scale=call.scale * term.factor)
    query = (call.query.to(call.dtype) * term.factor.to(call.dtype)).to(call.query.dtype)
    return replace(call, query=query, given_scale=call.scale)
