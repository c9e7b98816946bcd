"""What all terms have in common, and the checks of their shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from posenc.memo import Memo
from posenc.pairs import PairIndex


class CallShape(NamedTuple):
    """Sizes of a call, which its terms must fit."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    value_dim: int


@dataclass(frozen=True, eq=False)
class Term(ABC):
    """What a position encoding contributes; one of the final classes of this package."""

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


def check_tokens(name: str, index: PairIndex, tokens: int) -> None:
    """Raises unless the index is of so many tokens."""
    if index.layout.num_tokens != tokens:
        raise ValueError(
            f"{name}: the layout {index.layout} has {index.layout.num_tokens} tokens, "
            f"but the queries have {tokens}; pass the layout of these tokens"
        )


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], broadcast: int) -> None:
    """Raises unless the sides are those expected; the first `broadcast` of them may also be 1."""
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
