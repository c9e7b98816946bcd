"""How the tokens of a vision transformer lie on the image."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TokenLayout:
    """`prefix` non-spatial tokens, followed by a row-major `height x width` grid of patches.

    A layout is always passed, never guessed from a token count: 16x8 and 8x16 patches have the
    same count and different positions.

    Args:
        height: rows of the patch grid.
        width: columns of the patch grid.
        prefix: tokens before the grid (CLS, distillation, registers).

    Raises:
        TypeError: a value is not an integer.
        ValueError: a side is smaller than 1, `prefix` is negative, or a value is a symbol of
            `torch.export`, which a layout would replace by the number of the example.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> layout.num_tokens
    7
    """

    height: int
    width: int
    prefix: int = 0

    def __post_init__(self) -> None:
        check_is_fixed("TokenLayout", (self.height, self.width, self.prefix))
        for name, smallest in (("height", 1), ("width", 1), ("prefix", 0)):
            given = getattr(self, name)
            try:
                value = operator.index(given)  # NumPy's integers too
            except TypeError:
                value = None
            if value is None or isinstance(given, bool):
                raise TypeError(
                    f"TokenLayout.{name} must be an int, got {given!r} ({type(given).__name__})"
                )
            object.__setattr__(self, name, value)
            if value < smallest:
                raise ValueError(
                    f"TokenLayout.{name} must be at least {smallest}, got {value}: "
                    f"TokenLayout(height={self.height}, width={self.width}, prefix={self.prefix})"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.height, self.width

    @property
    def num_grid(self) -> int:
        """Number of patches."""
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        """Number of all tokens, prefix included."""
        return self.prefix + self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}" + (f" + {self.prefix} prefix" if self.prefix else "")


def check_is_fixed(name: str, sizes: Sequence[Any]) -> None:
    """Raises when `torch.export` leaves a size open that positions depend on."""
    if "torch" not in sys.modules:  # a layout alone needs none
        return
    from posenc._torch import is_exporting, is_symbolic

    # Otherwise `operator.index` takes the size of the example for all sizes, without a word in an
    # ONNX file. torch.compile may do that: it guards the size and compiles anew for others.
    if is_exporting() and any(map(is_symbolic, sizes)):
        raise ValueError(
            f"{name} has a size that is dynamic in this export, but positions need numbers: "
            "export one image size at a time, with fixed height and width in dynamic_shapes (the "
            "batch may be dynamic), and name each file by its size"
        )
