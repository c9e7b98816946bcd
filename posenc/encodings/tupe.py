"""TUPE: untied positional attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_flag, check_number, check_positive
from posenc.functional.buckets import (
    check_t5_buckets,
    sum_of_axes,
    swin_index,
    t5_along_axis,
)
from posenc.functional.precision import at_least_float32
from posenc.functional.resample import resample_grid
from posenc.layout import TokenLayout
from posenc.terms import ContentScale, LookupBias, LowRankBias, Term


class TUPE(AttentionEncoding):
    """Positions attend by projections of their own: `(s q_i . k_j + s p_i U . p_j V) / sqrt(2)`.

    `s` is the attention's scale, `p_i` the layer-normalized vector of position i, and U and V are
    linear layers with biases, split into heads as queries and keys are. With `relative` the sum of
    two T5 tables of the row and of the column offset is added, unscaled (see `T5Bias`).

    With `reset`, pairs with a prefix token are untied from the rest: patches look at prefix tokens
    with one learned score per head, that of the position vector of all prefix tokens with itself
    (plus one number of `prefix_key`, if relative). Prefix tokens look at all tokens alike, which is
    the first score of the paper's reset and has no effect in softmax. Without `reset` each prefix
    token has a position vector, and no relative part.

    `strength` g, per head, is 1 in the paper and no parameter there: positions count g times, and
    the content `2 ** (-g / 2)` times. On another grid position vectors are resampled as a learned
    table (bicubic, antialiased); the relative part needs no resampling. The paper shares all
    parameters among blocks: `share=True` of `patch_model`.

    Parameters: `position` `[rows, C]` with C = num_heads head_dim, prefix rows first;
    `norm_weight` and `norm_bias` `[C]`; `query_weight` and `key_weight` `[C, C]`, `query_bias` and
    `key_bias` `[C]`; `strength` `[heads]`; `table_rows` and `table_columns`
    `[heads, num_buckets]`, `prefix_key` `[heads, 1]`.

    Args:
        layout: tokens that fix the number of positions.
        num_heads: heads of the attention.
        head_dim: width of a head.
        reset: unties prefix tokens; the paper's "CLS reset".
        relative: adds the relative part (the paper's TUPE-R).
        num_buckets: of the relative part, per axis.
        max_distance: of the relative part, in patches.
        strength: start of `strength`; 0 leaves the model unchanged at first.

    Raises:
        ValueError: a strength that is no finite number, or bucket numbers that are not positive or
            leave no room for both parts of T5's rule (see `T5Bias`).
        TypeError: `reset` or `relative` is no bool.

    Initial effect: random positions attend, and content counts 0.71 times; none with `strength=0`.

    Reference: Ke et al. 2021, arXiv 2006.15595, section 3, equations 7 to 10.

    >>> TUPE(TokenLayout(2, 3, prefix=2), num_heads=2, head_dim=4).position.shape
    torch.Size([7, 8])
    """

    paper = ("Ke et al. 2021", "https://arxiv.org/abs/2006.15595")
    is_static = True
    is_sized_by_grid = True

    position: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    query_weight: Tensor
    query_bias: Tensor
    key_weight: Tensor
    key_bias: Tensor
    strength: Tensor
    table_rows: Tensor
    table_columns: Tensor
    prefix_key: Tensor

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        reset: bool = True,
        relative: bool = False,
        num_buckets: int = 32,
        max_distance: int = 128,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.reset = check_flag(reset, "reset", "TUPE")
        self.relative = check_flag(relative, "relative", "TUPE")
        self.start_strength = check_number(strength, "strength", "TUPE")
        self.num_buckets = check_positive(num_buckets, "num_buckets", "TUPE")
        self.max_distance = check_positive(max_distance, "max_distance", "TUPE")
        check_t5_buckets(num_buckets, max_distance, "TUPE")
        width, heads = num_heads * head_dim, (num_heads,)
        for name, shape, start in (
            ("position", (self._prefix_rows + layout.num_grid, width), None),
            ("norm_weight", (width,), 1.0),
            ("norm_bias", (width,), 0.0),
            ("query_weight", (width, width), None),
            ("query_bias", (width,), 0.0),
            ("key_weight", (width, width), None),
            ("key_bias", (width,), 0.0),
            ("strength", heads, self.start_strength),
            *self._relative_parameters(),
        ):
            value = torch.empty(shape, device=device, dtype=dtype)
            value = value.normal_(std=width**-0.5) if start is None else value.fill_(start)
            self.register_parameter(name, nn.Parameter(value))

    def _relative_parameters(self) -> list[tuple[str, tuple[int, ...], float]]:
        if not self.relative:
            return []
        shape: tuple[int, ...] = (self.num_heads, self.num_buckets)
        tables = [("table_rows", shape, 0.0), ("table_columns", shape, 0.0)]
        if self.layout.prefix and self.reset:
            tables.append(("prefix_key", (self.num_heads, 1), 0.0))
        return tables

    @property
    def _prefix_rows(self) -> int:
        """Position vectors of prefix tokens, all of which share one if untied."""
        return min(self.layout.prefix, 1) if self.reset else self.layout.prefix

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def check_prefix(self, layout: TokenLayout) -> None:
        """Without `reset` each prefix token has a vector: the number must be the same."""
        super().check_prefix(layout)
        if not self.reset and layout.prefix != self.layout.prefix:
            raise ValueError(
                f"TUPE with reset=False has positions for {self.layout.prefix} prefix tokens, the "
                f"layout {layout} has {layout.prefix}; build it with that prefix"
            )

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A scale of the content, a low-rank bias, and with `relative` a static lookup."""
        dtype = at_least_float32(self.position.dtype, q.dtype)
        strength = self.strength.to(dtype)[:, None, None]
        left, right = self._factors(layout, dtype)
        left = scale * 2**-0.5 * strength * left
        terms = (ContentScale(2 ** (-strength[None] / 2)), LowRankBias(left[None], right[None]))
        return (*terms, self._relative_part(layout, strength)) if self.relative else terms

    def _factors(self, layout: TokenLayout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions as queries and as keys, `[heads, N, head_dim]`; untied with a column more."""
        query, key = self._projected(layout, dtype)
        if not (self.reset and self.layout.prefix):
            return query, key
        score = (query[:, :1] * key[:, :1]).sum(-1, keepdim=True)  # [heads, 1, 1]
        return (
            _untied(query[:, 1:], torch.zeros_like(score), torch.ones_like(score), layout.prefix),
            _untied(key[:, 1:], score, torch.zeros_like(score), layout.prefix),
        )

    def _projected(self, layout: TokenLayout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        position = self.position.to(dtype)
        first, grid = position.split([self._prefix_rows, self.layout.num_grid])
        position = torch.cat([first, resample_grid(grid, self.layout.grid, layout.grid)])
        weight, bias = self.norm_weight.to(dtype), self.norm_bias.to(dtype)
        normed = F.layer_norm(position, position.shape[-1:], weight, bias)
        query = F.linear(normed, self.query_weight.to(dtype), self.query_bias.to(dtype))
        key = F.linear(normed, self.key_weight.to(dtype), self.key_bias.to(dtype))
        return self._heads(query), self._heads(key)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

    def _relative_part(self, layout: TokenLayout, strength: Tensor) -> LookupBias:
        rows = t5_along_axis(self.table_rows, layout.height, self.max_distance)
        columns = t5_along_axis(self.table_columns, layout.width, self.max_distance)
        table = strength[:, 0] * sum_of_axes(rows.to(strength.dtype), columns.to(strength.dtype))
        if layout.prefix:
            none = table.new_zeros(self.num_heads, 1)
            of_key = strength[:, 0] * self.prefix_key.to(table.dtype) if self.reset else none
            table = torch.cat([table, none, of_key, none], dim=1)
        index = swin_index(layout, "separate")
        return LookupBias(table[None, :, None, :], index)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"reset={self.reset}, relative={self.relative}"


def _untied(grid: Tensor, of_prefix: Tensor, of_grid: Tensor, prefix: int) -> Tensor:
    """`[heads, N, D + 1]`: patches and zeros for prefix tokens, and a column for their pairs."""
    heads, patches, width = grid.shape
    first = torch.cat([grid.new_zeros(heads, 1, width), of_prefix], dim=-1)
    rest = torch.cat([grid, of_grid.expand(heads, patches, 1)], dim=-1)
    return torch.cat([first.expand(heads, prefix, width + 1), rest], dim=1)
