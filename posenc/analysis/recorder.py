"""The record of attention calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from posenc.attention.api import matrix_of
from posenc.attention.call import AttentionCall
from posenc.functional.precision import at_least_float32, without_autocast
from posenc.layout import TokenLayout
from posenc.memo import is_transformed
from posenc.patching.observe import is_replayed
from posenc.terms import BiasTerm, Term


@dataclass(frozen=True, eq=False)
class CapturedAttention:
    """What each attention module computed when it ran last, by its name in the model.

    Args:
        attention: the weights `[B, heads, N, N]`, rows are queries: after softmax, before
            dropout, without graph, in at least float32. Windows are in the batch, as the model
            has them there: `[B * windows, heads, n, n]`. Differential attention calls twice: the
            heads of its second call follow those of the first, `[B, 2 heads, N, N]`.
        bias: the sum of the biases of posenc's encodings, `[1 or B, 1 or heads, N, N]`, each row
            up to a constant. A module without such a bias has no entry: one that is not patched,
            or has value tables only. The model's own biases and masks are not in it (they are in
            `attention`).
        layouts: of the tokens.
        left_out: name of an attention module in the blocks that is not recorded -> why (attention
            pooling behind the blocks is not among them).
        own_grids: names of the modules whose grid is not that of the whole image: they see a
            window, or a stage that may have some.
    """

    attention: dict[str, Tensor] = field(default_factory=dict, repr=False)
    bias: dict[str, Tensor] = field(default_factory=dict, repr=False)
    layouts: dict[str, TokenLayout] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    own_grids: set[str] = field(default_factory=set)


class Recorder:
    """Records the attention calls of one module; those of one forward follow each other."""

    def __init__(self, name: str, captured: CapturedAttention) -> None:
        self.name = name
        self.captured = captured
        self.is_first = True

    def start(self) -> None:
        """A forward begins."""
        _check_plain_forward(self.name)
        self.is_first = True

    def __call__(self, call: AttentionCall, layout: TokenLayout) -> None:
        """An attention call, as a site tells it."""
        if is_replayed():
            return
        _check_plain_forward(self.name, call.query, call.key)
        with torch.no_grad():
            attention = matrix_of(call)
        bias = dense_bias(call.terms, call.query)
        self.captured.layouts[self.name] = layout
        self._keep(self.captured.attention, attention)
        if bias is None:
            self.captured.bias.pop(self.name, None)
        else:
            self._keep(self.captured.bias, bias)
        self.is_first = False

    def _keep(self, where: dict[str, Tensor], new: Tensor) -> None:
        if not self.is_first:
            new = torch.cat([where[self.name], new], dim=1)
        where[self.name] = new


def _check_plain_forward(name: str, *tensors: Tensor) -> None:
    if is_transformed(*tensors):
        raise RuntimeError(
            f"capture_attention: {name} runs under torch.compile, torch.export, a function "
            "transform or dispatch mode, or on a tensor subclass, where nothing can be recorded: "
            "call the model itself, in plain eager mode"
        )


def dense_bias(terms: Sequence[Term], like: Tensor) -> Tensor | None:
    """The sum of the biases among terms, a new tensor without graph; None without any.

    Args:
        terms: what encodings returned.
        like: a query, whose device and dtype (but at least float32) it gets.
    """
    dtype = at_least_float32(like.dtype)
    total: Tensor | None = None
    with torch.no_grad(), without_autocast(like.device):
        for term in terms:
            if not isinstance(term, BiasTerm):
                continue
            bias = term.exact_form.dense().to(dtype, copy=True)
            total = bias if total is None else total + bias
    return total
