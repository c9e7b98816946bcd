"""What rewrites a call of attention before a backend sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from posenc.functional.rotary import rotate, rotate_blocks
from posenc.terms.base import CallShape, CallTerm, Term, check_shape


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
        check_shape("Rotation.cos", self.cos, expected, broadcast=2)
        check_shape("Rotation.sin", self.sin, expected, broadcast=2)


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
        check_shape("MatrixRotation.matrices", self.matrices, expected, broadcast=2)
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
            check_shape("ContentScale.factor", self.factor, expected, broadcast=3)
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
        check_shape("Mixture.gate", self.gate, expected, broadcast=3)
        for term in self.terms:
            term.check(shape)
