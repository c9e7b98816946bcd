"""Terms anew: each tensor changed, or each bias, those inside other terms too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from posenc.memo import Memo
from posenc.terms import BiasTerm, LowRankBias, Mixture, Term


def map_tensors(term: Term, change: Callable[[str, Tensor], Tensor], path: str = "") -> Any:
    """The term with each tensor changed, those of terms inside it too.

    Args:
        term: any term.
        change: from the name of a tensor (such as `bias`, `exact_lookup` or `terms_0_bias`, unique
            in the term) and the tensor to the new one.
        path: what names start with.
    """
    changes: dict[str, Any] = {}
    for each in dataclasses.fields(term):
        value, name = getattr(term, each.name), f"{path}{each.name}"
        if isinstance(value, Tensor):
            changes[each.name] = change(name, value)
        elif isinstance(value, Term):
            changes[each.name] = map_tensors(value, change, f"{name}_")
        elif each.name == "terms":
            inner = (map_tensors(t, change, f"{name}_{at}_") for at, t in enumerate(value))
            changes[each.name] = tuple(inner)
    return dataclasses.replace(term, **changes)


def map_biases(term: Term, change: Callable[[BiasTerm], BiasTerm]) -> Any:
    """The term with each bias changed: itself, or those inside a mixture."""
    if isinstance(term, Mixture):
        inner = tuple(map_biases(each, change) for each in term.terms)
        return dataclasses.replace(term, terms=inner)
    return change(term) if isinstance(term, BiasTerm) else term


def with_memo(bias: BiasTerm) -> BiasTerm:
    """The bias anew with a fresh memo, and one in the exact form inside it."""
    changes: dict[str, Any] = {}
    if isinstance(bias, LowRankBias) and bias.exact is not None:
        changes["exact"] = with_memo(bias.exact)
    own = dataclasses.replace(bias, **changes)
    object.__setattr__(own, "memo", Memo())
    return own
