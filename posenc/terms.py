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

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from posenc.functional.rotary import rotate, rotate_blocks
from posenc.memo import Memo
from posenc.pairs import PairIndex, read_pairs, sum_buckets

# `memo` is set only by an encoding's static cache, on terms whose tensors nobody else changes: a
# backend may keep there what it derived from them. It is no argument, so that `dataclasses.replace`
# does not hand it on to a term of other tensors.


class CallShape(NamedTuple):
    """Sizes of a call, which its terms must fit."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, eq=False)
class Term(ABC):
    """What a position encoding contributes; one of the final classes of this file."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, those of terms inside it too."""

    @abstractmethod
    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""


class BiasTerm(Term):
    """Added to the scores: a vocabulary that every backend knows, and that does not grow."""

    memo: Memo | None

    @property
    @abstractmethod
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""

    @property
    def exact_form(self) -> BiasTerm:
        """The same bias without the rounding of wide factors."""
        return self

    @property
    def is_wide(self) -> bool:
        """Whether it has factors that span more than 16-bit floats resolve."""
        return False

    @abstractmethod
    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""


class CallTerm(Term):
    """Rewrites the call before a backend sees it: `posenc.attention.lower` knows how."""


@dataclass(frozen=True, eq=False)
class DenseBias(BiasTerm):
    """A bias that is a matrix: `b = bias`.

    Args:
        bias: `[1 or B, 1 or heads, N, N]`, query before key.
    """

    bias: Tensor
    memo: Memo | None = field(default=None, init=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"bias": self.bias}

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        return self.bias.requires_grad

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        return self.bias

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        expected = (shape.batch, shape.heads, shape.tokens, shape.tokens)
        _check_shape("DenseBias.bias", self.bias, expected, broadcast=2)


@dataclass(frozen=True, eq=False)
class LookupBias(BiasTerm):
    """A bias read from a table by the pair's bucket.

    `side="query"`: `b[..., i, j] = lookup[..., i, index[i, j]]`;
    `side="key"`: `b[..., i, j] = lookup[..., j, index[i, j]]`.
    The index is always `[query, key]`. A static table is a lookup with one row; a contextual
    encoding has one row per token, computed from queries (or keys).

    Args:
        lookup: `[1 or B, 1 or heads, 1 or N, T]`.
        index: the bucket of each pair, `T` buckets.
        side: the token whose row of `lookup` is read.
    """

    lookup: Tensor
    index: PairIndex
    side: str = "query"
    memo: Memo | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.side not in ("query", "key"):
            raise ValueError(f'LookupBias.side must be "query" or "key", got {self.side!r}')

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"lookup": self.lookup}

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        return self.lookup.requires_grad

    @property
    def read_by(self) -> str:
        """Whose row of the table a pair reads: "one" for all, "query" or "key"."""
        return "one" if self.lookup.shape[-2] == 1 else self.side

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        where = self.index.gather_index(self.read_by, self.lookup.device)
        return read_pairs(self.lookup.flatten(-2), where)

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        _check_tokens("LookupBias", self.index, shape.tokens)
        expected = (shape.batch, shape.heads, shape.tokens, self.index.num_buckets)
        _check_shape("LookupBias.lookup", self.lookup, expected, broadcast=3)


@dataclass(frozen=True, eq=False)
class LowRankBias(BiasTerm):
    """A bias that is a product of two thin factors: `b = left right^T`.

    Args:
        left: `[1 or B, 1 or heads, N, r]`, rows belong to queries.
        right: `[1 or B, 1 or heads, N, r]`, rows belong to keys.
        wide: the products of the factors span more than 16-bit floats resolve.
        exact: the same bias, up to a constant per query, read from a table: without the rounding
            of wide factors. Backends that need no factors use it instead.
    """

    left: Tensor
    right: Tensor
    wide: bool = False
    exact: LookupBias | None = None
    memo: Memo | None = field(default=None, init=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        exact = {} if self.exact is None else {"exact": self.exact.lookup}
        return {"left": self.left, "right": self.right, **exact}

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient must reach the bias."""
        return any(tensor.requires_grad for tensor in self.tensors().values())

    @property
    def exact_form(self) -> BiasTerm:
        """The table that it was made from, where there is one."""
        return self if self.exact is None else self.exact

    @property
    def is_wide(self) -> bool:
        """As it was made."""
        return self.wide

    def dense(self) -> Tensor:
        """`[1 or B, 1 or heads, N, N]`."""
        return self.left @ self.right.transpose(-2, -1)

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        expected = (shape.batch, shape.heads, shape.tokens, self.left.shape[-1])
        _check_shape("LowRankBias.left", self.left, expected, broadcast=2)
        _check_shape("LowRankBias.right", self.right, expected, broadcast=2)
        if self.exact is not None:
            self.exact.check(shape)


@dataclass(frozen=True, eq=False)
class ValueLookup(Term):
    """Values read from a table: `out_i += sum_j a_ij table[index[i, j]]`.

    `a` is the attention after dropout, as it multiplies the values.

    Args:
        table: `[1 or heads, T, Dv]`.
        index: the bucket of each pair, `T` buckets.
    """

    table: Tensor
    index: PairIndex

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"table": self.table}

    def apply(self, attention: Tensor) -> Tensor:
        """`[B, heads, N, N]` -> `[B, heads, N, Dv]`: sums per bucket, times the table."""
        buckets = self.index.dense(attention.device)
        sums = sum_buckets(attention, buckets, self.index.num_buckets)
        return sums @ self.table.to(attention.dtype)

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        _check_tokens("ValueLookup", self.index, shape.tokens)
        expected = (shape.heads, self.index.num_buckets, shape.value_dim)
        _check_shape("ValueLookup.table", self.table, expected, broadcast=1)


@dataclass(frozen=True, eq=False)
class Rotation(CallTerm):
    """Turns queries and keys, channel pair by channel pair: `q_i, k_j -> R_i q_i, R_j k_j`.

    Pair c turns by the angle whose cosine and sine are given:
    `(x, y) -> (x cos - y sin, y cos + x sin)`. The first R channels of a head turn and the rest
    passes. Scores of two grid tokens then depend on the difference of their angles.

    Args:
        cos: `[1 or B, 1 or heads, N, R / 2]`; 1 for prefix tokens, which do not turn.
        sin: the same shape; 0 for prefix tokens.
        interleaved: channels 2c and 2c + 1 are a pair; otherwise c and c + R / 2 ("halves").
        blocks: halves pair up within each of so many equal blocks of the R channels: in a block
            of W channels, c and c + W / 2. Interleaved pairs are the same in any blocks.

    Reference: Su et al. 2021, arXiv 2104.09864, section 3.2.

    >>> import torch
    >>> turn = Rotation(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))  # by 90 degrees
    >>> turn.apply(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    tensor([[[[-2.,  1.,  3.]]]])
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    blocks: int = 1

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"cos": self.cos, "sin": self.sin}

    @property
    def width(self) -> int:
        """Number of channels that turn."""
        return 2 * self.cos.shape[-1]

    def apply(self, x: Tensor) -> Tensor:
        """Of queries or keys `[B, heads, N, D]`: the definition.

        Computed in at least float32 and rounded once, to the dtype of `x`.
        """
        return rotate(x, self.cos, self.sin, self.interleaved, self.blocks)

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        if self.width > shape.head_dim:
            raise ValueError(
                f"Rotation turns {self.width} channels (twice the last side of cos), and the "
                f"queries have a head_dim of {shape.head_dim}"
            )
        if self.blocks < 1 or self.cos.shape[-1] % self.blocks:
            raise ValueError(
                f"Rotation.blocks must divide the {self.cos.shape[-1]} pairs of channels, got "
                f"{self.blocks}"
            )
        expected = (shape.batch, shape.heads, shape.tokens, self.cos.shape[-1])
        _check_shape("Rotation.cos", self.cos, expected, broadcast=2)
        _check_shape("Rotation.sin", self.sin, expected, broadcast=2)


@dataclass(frozen=True, eq=False)
class MatrixRotation(CallTerm):
    """Turns queries and keys by a matrix for each token: `q_i, k_j -> R_i q_i, R_j k_j`.

    What `Rotation` does to pairs of channels, this does to blocks of any width W: block b holds
    the channels from `b W` to `(b + 1) W - 1`, and its matrix multiplies them as a column vector.
    The first `blocks * W` channels of a head turn and the rest passes. Prefix tokens do not turn:
    an encoding gives them the identity. Matrices are meant to be orthogonal, which is not checked.

    Turns of both kinds do not commute: those of one call act in the order of its terms, the first
    one first. Matrices are `blocks * W ** 2` numbers for each head and token, W times as many as
    the channels that they turn.

    Args:
        matrices: `[1 or B, 1 or heads, N, blocks, W, W]`.

    Reference: Ostmeier et al. 2024 (LieRE), arXiv 2406.10322.

    >>> import torch
    >>> turn = MatrixRotation(torch.tensor([[[[[[0.0, -1.0], [1.0, 0.0]]]]]]))  # by 90 degrees
    >>> turn.apply(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    tensor([[[[-2.,  1.,  3.]]]])
    """

    matrices: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"matrices": self.matrices}

    def apply(self, x: Tensor) -> Tensor:
        """Of queries or keys `[B, heads, N, D]`: the definition.

        Computed in at least float32 and rounded once, to the dtype of `x`.
        """
        return rotate_blocks(x, self.matrices)

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        blocks, _, width = (1, 1, 1, *self.matrices.shape)[-3:]
        expected = (shape.batch, shape.heads, shape.tokens, blocks, width, width)
        _check_shape("MatrixRotation.matrices", self.matrices, expected, broadcast=2)
        if not 0 < blocks * width <= shape.head_dim:
            raise ValueError(
                f"MatrixRotation turns {blocks * width} channels ({blocks} blocks of {width}), and "
                f"the queries have a head_dim of {shape.head_dim}"
            )


@dataclass(frozen=True, eq=False)
class ContentScale(CallTerm):
    """Scales the content of the scores alone: `factor * scale q k^T`, then biases are added.

    `ContentScale(0.0)` makes attention purely positional. Several factors multiply.

    Args:
        factor: a number, or `[1 or B, 1 or heads, 1 or N, 1]`, a factor for each query.
        cosine: queries and keys are divided by their lengths, and `factor` takes the place of the
            attention's own scale: `factor * cos(q, k)`.

    Reference: with `cosine`, Liu et al. 2022 (Swin V2), arXiv 2111.09883, equation 2; a factor of
    `2 ** -0.5` beside a positional term is that of TUPE, Ke et al. 2021, arXiv 2006.15595,
    equation 8.
    """

    factor: Tensor | float
    cosine: bool = False

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"factor": self.factor} if isinstance(self.factor, Tensor) else {}

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call, and the number is finite."""
        if isinstance(self.factor, Tensor):
            expected = (shape.batch, shape.heads, shape.tokens, 1)
            _check_shape("ContentScale.factor", self.factor, expected, broadcast=3)
        elif not isinstance(self.factor, (int, float)) or not abs(self.factor) < math.inf:
            raise ValueError(
                f"ContentScale.factor must be a tensor or a finite number, got {self.factor!r}"
            )


@dataclass(frozen=True, eq=False)
class Mixture(CallTerm):
    """Two attentions: `out = (1 - gate) usual + gate other`.

    The other attention has the same queries, keys, values and mask, as they were before any
    rewriting, and these terms alone. With `ContentScale(0.0)` among them it is purely positional.
    Under dropout each of the two drops weights of its own. A call has at most one mixture; the
    other attention may have one again. The values of the gate are not checked.

    Args:
        gate: `[1 or B, 1 or heads, 1 or N, 1]`, from 0 to 1.
        terms: of the other attention.

    Reference: d'Ascoli et al. 2021 (ConViT), arXiv 2103.10697, equation 7.
    """

    gate: Tensor
    terms: tuple[Term, ...]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, those of the other attention's terms too."""
        inner = {
            f"terms[{at}].{name}": tensor
            for at, term in enumerate(self.terms)
            for name, tensor in term.tensors().items()
        }
        return {"gate": self.gate, **inner}

    def check(self, shape: CallShape) -> None:
        """Raises unless the shapes fit a call."""
        expected = (shape.batch, shape.heads, shape.tokens, 1)
        _check_shape("Mixture.gate", self.gate, expected, broadcast=3)
        for term in self.terms:
            term.check(shape)


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


def _check_tokens(name: str, index: PairIndex, tokens: int) -> None:
    if index.layout.num_tokens != tokens:
        raise ValueError(
            f"{name}: the layout {index.layout} has {index.layout.num_tokens} tokens, "
            f"but the queries have {tokens}; pass the layout of these tokens"
        )


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], broadcast: int) -> None:
    """The first `broadcast` dimensions may also be 1."""
    shape = tuple(tensor.shape)
    fits = len(shape) == len(expected) and all(
        size == want or (size == 1 and axis < broadcast)
        for axis, (size, want) in enumerate(zip(shape, expected, strict=True))
    )
    if not fits:
        rule = ", ".join(
            f"1 or {want}" if axis < broadcast else str(want) for axis, want in enumerate(expected)
        )
        raise ValueError(f"{name} must have shape [{rule}] for these queries, got {list(shape)}")
