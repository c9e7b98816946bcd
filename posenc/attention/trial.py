"""A trial of the fused kernels: a small random call of the same kind, against the definition."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posenc.attention.backends import reference, triton
from posenc.attention.call import AttentionCall
from posenc.attention.kernels.blocks import LARGE, fills_large
from posenc.attention.kernels.forms import prefers_blocks
from posenc.attention.kernels.operands import call_layouts
from posenc.layout import TokenLayout
from posenc.pairs import PairIndex
from posenc.term_maps import map_tensors
from posenc.terms import DenseBias, LookupBias, LowRankBias, Term, ValueLookup

# At least: three of the largest tiles, so that the first whole tile, those in the course of a loop,
# the last one and prefix tokens are met.
TOKENS = 3 * LARGE.keys
PAIRS = 2  # images, and heads, at most
WIDTH = 128  # of values that show what dropout dropped
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.03}
TF32 = 2e-2  # where products in float32 may round their factors


ALIGNMENT = 16  # what a kernel is compiled for: whether numbers are multiples of it
# Width of the grid, prefix tokens, the form of tables, whether a call suits large tiles, and
# whether the number of tokens is aligned: what kernels are compiled for, and tiles chosen by.
Grid = tuple[int, int, bool, bool, bool]


def grid_of(call: AttentionCall) -> Grid:
    """Of a call that the kernels do not reject; zeros where no term reads a table."""
    layouts = call_layouts(call)
    height, width, prefix = (0, 0, 0)
    for layout in layouts:  # one at most
        height, width, prefix = layout.height, layout.width, layout.prefix
    keys = int(call.key.shape[2])
    return width, prefix, prefers_blocks(height, width), *_fit(keys, prefix, width)


def _fit(tokens: int, prefix: int, width: int) -> tuple[bool, bool]:
    """Whether tokens suit large tiles, and are aligned."""
    return fills_large(tokens, prefix, width), tokens % ALIGNMENT == 0


def fault_of(call: AttentionCall, is_trained: bool) -> str | None:
    """None where output, and all gradients if trained, are right; else what is not, in words."""
    try:
        with torch.set_grad_enabled(is_trained), _on(call.query.device):
            return _compare(_Small(call).call, is_blocked=grid_of(call)[2])
    except Exception as error:  # whatever a compiler or a device may raise
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _compare(call: AttentionCall, is_blocked: bool) -> str | None:
    """Of output and gradients, relative to the largest number."""
    factors = None if call.dropout_p == 0 else _dropout_factors(call)
    with _same_numbers(call.query.device):
        out = triton.compute(call, is_blocked)
    exact = _in_float64(call)
    expected = _attention(exact, factors)
    pairs = [("output", out, expected)]
    if torch.is_grad_enabled():
        cotangent = torch.linspace(-1, 2, out.numel(), device=out.device).sin().view(out.shape)
        grads, wanted = (_gradients(*each, cotangent) for each in ((out, call), (expected, exact)))
        pairs += [(f"the gradient of {name}", grads[name], wanted[name]) for name in wanted]
    tolerance = TOLERANCE[call.query.dtype]
    if call.query.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        tolerance = TF32
    for name, got, want in pairs:
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1)
        if not error <= tolerance:  # or NaN
            return f"{name} is off by {error:.2g} of its largest number, allowed {tolerance:.2g}"
    return None


def _attention(call: AttentionCall, factors: Tensor | None) -> Tensor:
    """The definition, with these weights kept and scaled."""
    attention = reference.attention_matrix(call)
    attention = attention if factors is None else attention * factors
    out = attention @ call.value
    for term in call.value_terms:
        out = out + term.apply(attention)
    return out


def _dropout_factors(call: AttentionCall) -> Tensor:
    """What dropout makes of each weight, 0 or `1 / (1 - p)`: read off uniform attention."""
    tokens = call.query.shape[2]
    same = torch.zeros_like(call.query, requires_grad=False)
    one_hot = torch.eye(tokens, device=same.device, dtype=same.dtype)
    columns = [
        _uniform(call, same, values.expand(*same.shape[:2], -1, -1))
        for values in one_hot.split(WIDTH, dim=1)
    ]
    kept = torch.cat(columns, -1) > 0.5 / tokens
    if abs(kept.double().mean() - (1 - call.dropout_p)) > 0.05:
        raise ArithmeticError(f"dropout keeps {kept.double().mean():.2f} of the weights")
    return kept / (1 - call.dropout_p)


def _uniform(call: AttentionCall, same: Tensor, values: Tensor) -> Tensor:
    """Attention that is the same everywhere, but for what dropout drops."""
    plain = replace(call, query=same, key=same, value=values, terms=(), attn_mask=None)
    with torch.no_grad(), _same_numbers(same.device):
        return triton.compute(plain)


def _gradients(out: Tensor, call: AttentionCall, cotangent: Tensor) -> dict[str, Tensor]:
    """By name; those that the call does not depend on are zero."""
    leaves = {name: x for name, x in _named_tensors(call).items() if x.requires_grad}
    grads = torch.autograd.grad(
        out, list(leaves.values()), cotangent.to(out.dtype), materialize_grads=True
    )
    return dict(zip(leaves, grads, strict=True))


def _named_tensors(call: AttentionCall) -> dict[str, Tensor]:
    tensors = {"query": call.query, "key": call.key, "value": call.value}
    for at, term in enumerate(call.terms):
        names = term.tensors().items()
        tensors.update({f"{type(term).__name__}.{name} ({at})": x for name, x in names})
    return tensors


def _in_float64(call: AttentionCall) -> AttentionCall:
    """The same numbers, to differentiate again."""

    def twin(_: str, tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(tensor.requires_grad)

    mask = call.attn_mask
    return replace(
        call,
        query=twin("", call.query),
        key=twin("", call.key),
        value=twin("", call.value),
        terms=tuple(map_tensors(term, twin) for term in call.terms),
        attn_mask=mask.double() if mask is not None and mask.is_floating_point() else mask,
    )


class _Small:
    """Fewer images, heads and tokens than a call, and otherwise what decides about its kernels."""

    def __init__(self, call: AttentionCall) -> None:
        self.generator = torch.Generator("cpu").manual_seed(0)
        batch, heads, tokens, _ = call.query.shape
        self.batch, self.heads = min(batch, PAIRS), min(heads, PAIRS)
        layouts = call_layouts(call)
        self.layout = _small_layout(layouts.pop()) if layouts else _small_row(tokens)
        self.num_tokens = self.layout.num_tokens
        self.call = replace(
            call,
            query=self._inputs(call.query),
            key=self._inputs(call.key),
            value=self._inputs(call.value),
            terms=tuple(map(self._term, call.terms)),
            attn_mask=None if call.mask_4d is None else self._mask(call.mask_4d),
        )

    def _inputs(self, like: Tensor) -> Tensor:
        shape = (self.batch, self.heads, self.num_tokens, like.shape[-1])
        return self._numbers(shape, like).requires_grad_(torch.is_grad_enabled())

    def _term(self, term: Term) -> Term:
        if isinstance(term, LookupBias):
            return self._lookup(term)
        if isinstance(term, LowRankBias):
            sizes = (self.num_tokens, term.left.shape[-1])
            left, right = (self._factor(x, *sizes) for x in (term.left, term.right))
            exact = None if term.exact is None else self._lookup(term.exact)
            return LowRankBias(left, right, term.wide, exact)
        if isinstance(term, DenseBias):
            return DenseBias(self._factor(term.bias, *(self.num_tokens,) * 2))
        if isinstance(term, ValueLookup):
            index = self._index(term.index)
            shape = (min(term.table.shape[0], self.heads), index.num_buckets, term.table.shape[-1])
            return ValueLookup(self._numbers(shape, term.table), index)
        raise TypeError(f"the kernels know no {type(term).__name__}")

    def _lookup(self, term: LookupBias) -> LookupBias:
        index = self._index(term.index)
        rows = 1 if term.read_by == "one" else self.num_tokens
        return LookupBias(self._factor(term.lookup, rows, index.num_buckets), index, term.side)

    def _factor(self, like: Tensor, *sizes: int) -> Tensor:
        """Shared by images and heads as the tensor of a term is."""
        shared = (min(like.shape[0], self.batch), min(like.shape[1], self.heads))
        return self._numbers((*shared, *sizes), like)

    def _index(self, index: PairIndex) -> PairIndex:
        """Of random buckets."""
        shape = (2 * self.layout.height - 1, 2 * self.layout.width - 1)
        buckets = self._integers(index.num_buckets, shape)
        prefix = None
        if self.layout.prefix:
            first, second, third = self._integers(index.num_buckets, (3,)).tolist()
            prefix = (first, second, third)
        return PairIndex(self.layout, buckets, index.num_buckets, prefix, index.transposed)

    def _mask(self, like: Tensor) -> Tensor:
        sizes = (self.batch, self.heads, self.num_tokens, self.num_tokens)
        shape = tuple(min(*each) for each in zip(like.shape, sizes, strict=True))
        if like.dtype == torch.bool:
            return (self._integers(4, shape) > 0).to(like.device)
        return self._numbers(shape, like)

    def _integers(self, below: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(below, shape, generator=self.generator, device="cpu")

    def _numbers(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Trained where the call's are: kernels sum nothing for others."""
        numbers = torch.randn(
            tuple(shape), generator=self.generator, device="cpu", dtype=torch.float32
        )
        numbers = numbers.to(like.device, like.dtype)
        return numbers.requires_grad_(like.requires_grad and torch.is_grad_enabled())


def _small_layout(layout: TokenLayout) -> TokenLayout:
    """The first rows, as many as run the same kernels."""
    fit = _fit(layout.num_tokens, layout.prefix, layout.width)
    enough = -(-TOKENS // layout.width)
    for rows in range(enough, layout.height):
        small = TokenLayout(rows, layout.width, layout.prefix)
        if _fit(small.num_tokens, layout.prefix, layout.width) == fit:
            return small
    return layout


def _small_row(tokens: int) -> TokenLayout:
    """Tokens without a grid, of which tiles leave over as many."""
    return TokenLayout(1, min(tokens, TOKENS + tokens % LARGE.keys))


@contextlib.contextmanager
def _same_numbers(device: torch.device) -> Any:
    """The same random numbers each time, of which the caller's generators see nothing."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
