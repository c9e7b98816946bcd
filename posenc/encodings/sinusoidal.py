"""Sine and cosine positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import TokenEncoding, check_choice, check_number
from posenc.functional.precision import at_least_float32
from posenc.functional.sincos import CONVENTIONS, Convention, sincos_table
from posenc.layout import TokenLayout


class Sinusoidal(TokenEncoding):
    """Adds a fixed table of sines, with a learned strength: `x + strength * table`.

    Prefix tokens pass unchanged.

    The conventions and formulas are those of `posenc.functional.sincos.sincos_table`; all are
    right on rectangles, where each token gets its own row and column.

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the tokens, a multiple of 4 (any for "vaswani").
        convention: "mae", "timm" (2-D) or "vaswani" (1-D over the row-major index).
        temperature: the base of the frequencies.
        strength: start of the learnable scalar `strength`; the papers' encoding is 1, frozen.

    Initial effect: the table is added; none with `strength=0`.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.5; He et al. 2021 (MAE),
    arXiv 2111.06377.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> Sinusoidal(layout, embed_dim=8)(torch.zeros(1, 7, 8), layout)[0, 1]
    tensor([0., 0., 1., 1., 0., 0., 1., 1.], grad_fn=<SelectBackward0>)
    """

    paper = ("Vaswani et al. 2017", "https://arxiv.org/abs/1706.03762")

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        convention: Convention = "mae",
        temperature: float = 10000.0,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim)
        self.convention = check_choice(convention, CONVENTIONS, "convention", "Sinusoidal")
        self.temperature = check_number(temperature, "temperature", "Sinusoidal")
        if self.temperature <= 0:
            raise ValueError(f"Sinusoidal: temperature must be positive, got {temperature!r}")
        self.start_strength = check_number(strength, "strength", "Sinusoidal")
        if convention != "vaswani" and embed_dim % 4:
            raise ValueError(
                f"Sinusoidal: embed_dim must be a multiple of 4 for convention={convention!r} "
                f"(sine and cosine of row and column), got {embed_dim}"
            )
        self.strength = nn.Parameter(  # FSDP takes no scalars
            torch.full((1,), self.start_strength, device=device, dtype=dtype)
        )

    @property
    def is_sized_by_prefix(self) -> bool:
        """No parameter depends on prefix tokens."""
        return False

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def encode(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """`x + strength * table`."""
        dtype = at_least_float32(x.dtype)
        table = sincos_table(
            layout, self.embed_dim, self.convention, self.temperature, device=x.device, dtype=dtype
        )
        return (x + self.strength.to(dtype) * table).to(x.dtype)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"convention={self.convention}, temperature={self.temperature:g}"
