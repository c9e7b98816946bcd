"""Terms: what a position encoding contributes to attention, as data.

Biases are added to the scores, value lookups to the output; every backend knows these. What
rewrites the call (`Rotation`, `MatrixRotation`, `ContentScale`, `Mixture`) is gone before a
backend sees it.

Symbols: query, key `[B, heads, N, D]`, value `[B, heads, N, Dv]`, scores
`s = scale * query key^T`; a bias `b` is added to `s` before softmax. Additive terms define
their truth by `dense()`; a backend may compute it in any other way. Biases are meant up to a
constant per query row over all keys, which softmax does not see.
"""

from __future__ import annotations

from collections.abc import Sequence

from posenc.terms.base import BiasTerm, CallShape, CallTerm, Term
from posenc.terms.biases import DenseBias, LookupBias, LowRankBias
from posenc.terms.calls import ContentScale, MatrixRotation, Mixture, Rotation
from posenc.terms.values import ValueLookup

__all__ = [
    "TERM_TYPES",
    "BiasTerm",
    "CallShape",
    "CallTerm",
    "ContentScale",
    "DenseBias",
    "LookupBias",
    "LowRankBias",
    "MatrixRotation",
    "Mixture",
    "Rotation",
    "Term",
    "ValueLookup",
    "check_terms",
]

TERM_TYPES = (
    DenseBias,
    LookupBias,
    LowRankBias,
    ValueLookup,
    Rotation,
    MatrixRotation,
    ContentScale,
    Mixture,
)


def check_terms(terms: Sequence[Term], name: str) -> None:
    """Raises unless these are terms, those inside them too, with at most one mixture among them."""
    for term in terms:
        if type(term) not in TERM_TYPES:
            known = ", ".join(each.__name__ for each in TERM_TYPES)
            raise TypeError(f"{name} must be {known}, got {type(term).__name__}")
        if isinstance(term, Mixture):
            check_terms(term.terms, "Mixture.terms")
    mixtures = sum(isinstance(term, Mixture) for term in terms)
    if mixtures > 1:
        raise ValueError(
            f"{name}: {mixtures} mixtures in one call have no defined order; give one, whose terms "
            "may have a mixture again"
        )
