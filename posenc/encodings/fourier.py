"""Learned Fourier features of the position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posenc.encodings.base import TokenEncoding, check_positive, check_positive_number
from posenc.functional.coordinates import unit_coordinates
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


class FourierFeatures(TokenEncoding):
    """A small network reads learned waves of the position: `x + V gelu(U f(p) + u) + v`.

    `f(p) = [cos(W p), sin(W p)] / sqrt(features)`, where p is (y, x) of the center of the patch,
    each from 0 to 1 over the image. Two patches have nearly equal features where their distance is
    small against `gamma`: at the start `2 f(p) . f(q)` is about `exp(-|p - q|^2 / (2 gamma^2))`.
    The paper has groups of coordinates; the position of a patch is one group.

    Prefix tokens pass unchanged. On another grid the same function of the image is read at other
    places; no parameter is resized. On a rectangle both sides are 1: for a function of the
    distance in patches it has to learn the aspect.

    Parameters: W `frequencies` `[features / 2, 2]`, in radians per side of the image; U
    `hidden_weight` `[hidden, features]` and u `hidden_bias` `[hidden]`; V `out_weight`
    `[embed_dim, hidden]` and v `out_bias` `[embed_dim]`.

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the tokens.
        features: the number of waves, cosines and sines together, even.
        hidden: width of the hidden layer.
        gamma: W starts normal with standard deviation `1 / gamma`; in sides of the image. The
            paper sets it by the unit of its positions, the value here is ours.

    Raises:
        ValueError: a width below 1, an odd number of features, or a gamma that is not positive.

    Initial effect: none, because V and v start at zero.

    Reference: Li et al. 2021, arXiv 2106.02795, section 3 and algorithm 1.

    >>> fourier = FourierFeatures(TokenLayout(2, 3), embed_dim=8)
    >>> tuple(fourier.frequencies.shape), tuple(fourier.out_weight.shape)
    ((64, 2), (8, 32))
    """

    paper = ("Li et al. 2021", "https://arxiv.org/abs/2106.02795")
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        features: int = 128,
        hidden: int = 32,
        gamma: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim)
        if check_positive(features, "features", "FourierFeatures") % 2:
            raise ValueError(
                "FourierFeatures: features must be even, a cosine and a sine of each frequency, "
                f"got {features}"
            )
        check_positive(hidden, "hidden", "FourierFeatures")
        self.gamma = check_positive_number(gamma, "gamma", "FourierFeatures")

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        self.frequencies = zeros(features // 2, 2)
        self.hidden_weight, self.hidden_bias = zeros(hidden, features), zeros(hidden)
        self.out_weight, self.out_bias = zeros(embed_dim, hidden), zeros(embed_dim)
        nn.init.normal_(self.frequencies, std=1 / self.gamma)
        bound = features**-0.5  # as torch.nn.Linear
        nn.init.uniform_(self.hidden_weight, -bound, bound)
        nn.init.uniform_(self.hidden_bias, -bound, bound)

    def changes_at_start(self) -> bool:
        """Never: the last layer is zero."""
        return False

    def encode(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """`x + network(position)` for patches, prefix tokens as they are."""
        dtype = at_least_float32(self.frequencies.dtype, x.dtype)
        positions = self._positions(unit_coordinates(layout, x.device, dtype))
        return (x + F.pad(positions, (0, 0, layout.prefix, 0))).to(x.dtype)

    def _positions(self, coordinates: Tensor) -> Tensor:
        """The network: `[h * w, 2]` -> `[h * w, embed_dim]`."""
        dtype = coordinates.dtype
        angles = F.linear(coordinates, self.frequencies.to(dtype))
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1) * self._num_features**-0.5
        hidden = F.gelu(F.linear(waves, self.hidden_weight.to(dtype), self.hidden_bias.to(dtype)))
        return F.linear(hidden, self.out_weight.to(dtype), self.out_bias.to(dtype))

    @property
    def _num_features(self) -> int:
        return self.hidden_weight.shape[1]

    def extra_repr(self) -> str:
        """Options, as printed."""
        hidden = self.hidden_weight.shape[0]
        return f"features={self._num_features}, hidden={hidden}, gamma={self.gamma:g}"
