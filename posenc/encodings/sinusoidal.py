"""Sine and cosine positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import (
    TokenEncoding,
    check_choice,
    check_flag,
    check_number,
    check_positive_number,
)
from posenc.functional.precision import at_least_float32
from posenc.functional.sincos import CONVENTIONS, Convention, check_sincos, sincos_table
from posenc.layout import TokenLayout


class Sinusoidal(TokenEncoding):
    """Adds a fixed table of sines, with a learned strength: `x + strength * table`.

    Prefix tokens pass unchanged.

    The conventions and formulas are those of `posenc.functional.sincos.sincos_table`; all are
    right on rectangles, where each token gets its own row and column. On another grid the table is
    computed for that grid, in patches; "detr" with `normalize` is relative to the grid.

    Published code differs: MAE's has the column in the first half of the channels, which it names
    `emb_h`; MoCo v3's table is column-major, so that on rectangles tokens get the vectors of others
    (here they get their own); timm's `reverse_coord` changes the order of tokens, too.

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the tokens: any for "vaswani" and "positional_encodings", a multiple of
            2 for "mae_1d" and of 4 for the others.
        convention: "mae", "timm", "moco_v3", "detr", "positional_encodings" (2-D), "vaswani" or
            "mae_1d" (1-D over the row-major index).
        temperature: the base of the frequencies.
        reverse_coord: of "timm": the column before the row.
        interleave_sin_cos: of "timm": sine and cosine of one coordinate, then of the other.
        normalize: of "detr": positions from 0 to `2 pi` over the grid, as its models have them.
        strength: start of the learnable scalar `strength`; the papers' encoding is 1, frozen.

    Raises:
        ValueError: an unknown convention, a width that does not fit it, or a flag of another one.
        TypeError: a flag that is neither True nor False.

    Initial effect: the table is added; none with `strength=0`.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.5; He et al. 2021 (MAE), arXiv
    2111.06377; Chen et al. 2021 (MoCo v3), arXiv 2104.02057; Carion et al. 2020 (DETR), arXiv
    2005.12872.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> Sinusoidal(layout, embed_dim=8)(torch.zeros(1, 7, 8), layout)[0, 1]
    tensor([0., 0., 1., 1., 0., 0., 1., 1.], grad_fn=<SelectBackward0>)
    """

    paper = ("Vaswani et al. 2017", "https://arxiv.org/abs/1706.03762")
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        convention: Convention = "mae",
        temperature: float = 10000.0,
        reverse_coord: bool = False,
        interleave_sin_cos: bool = False,
        normalize: bool = False,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim)
        self.convention = check_choice(convention, CONVENTIONS, "convention", "Sinusoidal")
        self.temperature = check_positive_number(temperature, "temperature", "Sinusoidal")
        self.start_strength = check_number(strength, "strength", "Sinusoidal")
        self.flags = {
            "reverse_coord": check_flag(reverse_coord, "reverse_coord", "Sinusoidal"),
            "interleave_sin_cos": check_flag(
                interleave_sin_cos, "interleave_sin_cos", "Sinusoidal"
            ),
            "normalize": check_flag(normalize, "normalize", "Sinusoidal"),
        }
        check_sincos("Sinusoidal", self.embed_dim, convention, **self.flags)
        self.strength = nn.Parameter(  # FSDP takes no scalars
            torch.full((1,), self.start_strength, device=device, dtype=dtype)
        )

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def encode(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """`x + strength * table`."""
        dtype = at_least_float32(x.dtype)
        table = sincos_table(
            layout,
            self.embed_dim,
            self.convention,
            self.temperature,
            **self.flags,
            device=x.device,
            dtype=dtype,
        )
        return (x + self.strength.to(dtype) * table).to(x.dtype)

    def extra_repr(self) -> str:
        """Options, as printed."""
        flags = "".join(f", {name}=True" for name, value in self.flags.items() if value)
        return f"convention={self.convention}, temperature={self.temperature:g}{flags}"
