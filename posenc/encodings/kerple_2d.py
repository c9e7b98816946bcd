"""KERPLE in two dimensions: logarithmic and power penalties on distance."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_number
from posenc.functional.buckets import distance_index, fit_buckets
from posenc.functional.distances import patch_distances
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term

Form = Literal["log", "power"]


class KERPLE2D(AttentionEncoding):
    """A penalty per head that grows with the logarithm, or a power, of distance.

    - "log": `b[i, j] = -r1 log(1 + r2 d)`;
    - "power": `b[i, j] = -r1 d^r2`.

    `d` is the Euclidean distance of the two patches, in patches; a pair with a prefix token has no
    bias. The numbers r1 and r2 are learned for each head, `r1, r2 > 0`, and `r2 < 2` in the power
    form: these biases are conditionally positive definite kernels, in the plane as on a line. On a
    grid of one row it is the paper's scheme, for keys on both sides. Other grids need no resizing.

    Parameters, `[heads]` each: `log_r1`; `log_r2` in the logarithmic form, and `logit_r2` with
    `r2 = 2 sigmoid(logit_r2)` in the power form; and, where it is asked for, `strength`.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: the heads of the attention.
        head_dim: not needed.
        form: "log" or "power".
        r1: the start of r1, in logits.
        r2: the start of r2, in 1 / patches for the logarithmic form; without unit, and less than 2,
            for the power form. (For 2 exactly there is `alibi_2d` with `distance="squared"`.)
        strength: None is the paper's form. A number adds a learned factor of the bias for each
            head, which starts there: 0 leaves the model unchanged at first.

    Raises:
        ValueError: an unknown form, or an r1 or r2 out of range.

    Initial effect: near patches get more attention; none with `strength=0`.

    Reference: Chi et al. 2022, arXiv 2205.09921, section 4.

    >>> layout, q = TokenLayout(1, 3), torch.zeros(1, 1, 3, 4)
    >>> KERPLE2D(layout, 1, form="power")(q, q, layout)[0].dense()[0, 0, 0].tolist()
    [-0.0, -1.0, -2.0]
    """

    paper = ("Chi et al. 2022", "https://arxiv.org/abs/2205.09921")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        form: Form = "log",
        r1: float = 1.0,
        r2: float = 1.0,
        strength: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.form = check_choice(form, get_args(Form), "form", "KERPLE2D")
        r1 = _check_below(math.inf, r1, "r1")
        r2 = _check_below(2.0 if form == "power" else math.inf, r2, "r2")

        def parameter(start: float) -> nn.Parameter:
            return nn.Parameter(torch.full((num_heads,), start, device=device, dtype=dtype))

        self.log_r1 = parameter(math.log(r1))
        if form == "power":
            self.logit_r2 = parameter(math.log(r2 / (2 - r2)))
        else:
            self.log_r2 = parameter(math.log(r2))
        self.start_strength = strength
        if strength is not None:
            self.start_strength = check_number(strength, "strength", "KERPLE2D")
            self.strength = parameter(self.start_strength)

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A static lookup."""
        dtype = at_least_float32(self.log_r1.dtype, q.dtype)
        index = distance_index(layout)
        distances = patch_distances(layout, self.log_r1.device, dtype)
        table = -self._weight(dtype)[:, None] * self._growth(distances)
        return (LookupBias(fit_buckets(table, index)[None, :, None], index),)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        r1 = self.log_r1.to(dtype).exp()
        return r1 if self.start_strength is None else self.strength.to(dtype) * r1

    def _growth(self, distances: Tensor) -> Tensor:
        """How the penalty grows with distance: `[T]` -> `[heads, T]`."""
        if self.form == "power":
            return distances ** (2 * self.logit_r2.to(distances.dtype).sigmoid())[:, None]
        return torch.log1p(self.log_r2.to(distances.dtype).exp()[:, None] * distances)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"form={self.form}"


def _check_below(end: float, value: float, name: str) -> float:
    number = check_number(value, name, "KERPLE2D")
    if not 0 < number < end:
        below = "" if end == math.inf else f' and less than {end:g} with form="power"'
        raise ValueError(f"KERPLE2D: {name} must be positive{below}, got {value!r}")
    return number
