"""Relative positions of Transformer-XL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_positive_number
from posenc.functional.buckets import Axis, axis_index, fit_buckets
from posenc.functional.precision import at_least_float32
from posenc.functional.sincos import offset_waves
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, LowRankBias, Term


class TransformerXL(AttentionEncoding):
    """Queries read projected sinusoids of offsets: `s ((q_i + u) . k_j + (q_i + v) . W r[i - j])`.

    With `s` the attention's scale and C = num_heads head_dim: `r` holds C / 2 channels of the row
    offset and then C / 2 of the column offset, query minus key, in patches; each half is
    `[sin(d w), cos(d w)]` with `w_n = temperature ** (-n / (C / 4))`, n < C / 4, for its offset d.
    u says how much each head looks at a content, v at an offset, whoever asks. W multiplies each
    half by itself, so the score of an offset is one of rows plus one of columns.

    Parameters: `projection`, the W, `[C, C]`, its rows split into heads as those of the keys (the
    paper's `W_k,R`; `r_net.weight` of its code, where each column belongs to a channel of the one
    axis of a text); `content_bias` and `position_bias`, u and v, `[heads, head_dim]` (`r_w_bias`
    and `r_r_bias`).

    u reaches all keys, prefix tokens too: they have a content. A pair with a prefix token has no
    offset, and neither `q . W r` nor `v . W r`. On a grid of one row without prefix tokens the row
    half is the same for all keys, which softmax does not see, and the column half is the paper's
    sinusoid, of C / 2 channels. Another grid needs no resampling: any offset has a sinusoid.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: width of a head; C must be a multiple of 4.
        temperature: of the sinusoids.

    Initial effect: none, W, u and v start at zero; the first gradient of v is therefore zero, those
    of W and u are not. The paper starts all at random.

    Raises:
        ValueError: C is no multiple of 4, or a temperature that is not positive.

    Reference: Dai et al. 2019, arXiv 1901.02860, section 3.3; there for the single axis of a text,
    and with u and v that may be shared by all blocks (`share=True` of `patch_model` shares W, too).

    >>> encoding = TransformerXL(TokenLayout(2, 3), num_heads=2, head_dim=4)
    >>> encoding.projection.shape, encoding.content_bias.shape
    (torch.Size([8, 8]), torch.Size([2, 4]))
    """

    paper = ("Dai et al. 2019", "https://arxiv.org/abs/1901.02860")
    is_sized_by_prefix = False

    projection: Tensor
    content_bias: Tensor
    position_bias: Tensor

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        temperature: float = 10000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        width = num_heads * head_dim
        if width % 4:
            raise ValueError(
                "TransformerXL: num_heads * head_dim must be a multiple of 4 (sine and cosine of "
                f"row and column), got {num_heads} * {head_dim} = {width}"
            )
        self.temperature = check_positive_number(temperature, "temperature", "TransformerXL")
        per_head = (num_heads, head_dim)
        for name, shape in (
            ("projection", (width, width)),
            ("content_bias", per_head),
            ("position_bias", per_head),
        ):
            value = torch.zeros(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(value))

    def changes_at_start(self) -> bool:
        """Never: all parameters start at zero."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A lookup in the context of the query for each axis, and a bias of rank one.

        The rank one is u's: the same for all queries, and other for each key.
        """
        dtype = at_least_float32(self.projection.dtype, q.dtype)
        reading = scale * (q.to(dtype) + self.position_bias.to(dtype)[:, None])
        rows, columns = self.projection.to(dtype).chunk(2, dim=1)
        of_key = scale * k.to(dtype) @ self.content_bias.to(dtype)[..., None]  # [B, heads, N, 1]
        return (
            self._along(reading, rows, layout, "rows"),
            self._along(reading, columns, layout, "cols"),
            LowRankBias(torch.ones_like(of_key[:1, :1]), of_key),
        )

    def _along(
        self, reading: Tensor, projection: Tensor, layout: TokenLayout, axis: Axis
    ) -> LookupBias:
        """`projection` is W's half, `[C, C / 2]`."""
        index = axis_index(layout, axis)
        side = layout.height if axis == "rows" else layout.width
        dim, device, dtype = projection.shape[1], projection.device, projection.dtype
        waves = offset_waves(side, dim, self.temperature, device, dtype)
        table = (projection @ waves.T).unflatten(0, (self.num_heads, -1))
        return LookupBias(reading @ fit_buckets(table, index), index)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"temperature={self.temperature:g}"
