"""ConViT's gated positional self-attention."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_number
from posenc.functional.buckets import swin_index
from posenc.functional.coordinates import patch_offsets
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.memo import memoized
from posenc.pairs import PairIndex
from posenc.terms import ContentScale, LookupBias, Mixture, Term

Init = Literal["local", "random"]


class ConViT(AttentionEncoding):
    """A gate mixes attention by content with one by position: `A = (1 - g) A_usual + g A_pos`.

    `A_pos = softmax_j(w . r_ij)` over the patches, with `r = (d_column, d_row, |d|^2)`, d key
    minus query in patches, and `g = strength sigmoid(gate)`, all per head. At the local start
    `w = s (2 D_column, 2 D_row, -1)`: the head looks at offset D, `w . r = -s |d - D|^2` up to a
    constant. The published projection has a bias too, which softmax does not see; it is left out.

    Parameters: `weight` `[heads, 3]`, `gate` `[heads]`, `strength` `[heads]`, which is 1 in the
    paper and no parameter there.

    ConViT has no class token in these layers. Here prefix tokens keep their usual attention
    (their g is 0), and patches give them no weight in `A_pos`. Any grid needs no resampling; the
    published code takes squares only.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: not needed.
        init: "local", the start as a convolution: the first K x K heads, K the root of the number
            of heads rounded down, take the offsets of a K x K stencil in the paper's order, half
            offsets where K is even. Other heads take the nearest offsets around it; the published
            code leaves them random. "random": uniform weights, as of a linear layer.
        locality_strength: the s of the local start; 1 over the width of a head's field.
        gate: start of `gate`; 1 gives g = 0.73.
        strength: start of `strength`; 0 leaves the model unchanged at first.

    Raises:
        ValueError: an unknown word for the start, or a strength or gate that is no finite number.

    Initial effect: heads look at their offsets; none with `strength=0`.

    Reference: d'Ascoli et al. 2021, arXiv 2103.10697, section 3, equation 7. The values of
    ConViT start as the identity, too, which belongs to the model.

    >>> convit = ConViT(TokenLayout(2, 3), num_heads=4)
    >>> convit.weight[1].tolist()  # half a column to the left, half a row down
    [-1.0, 1.0, -1.0]
    """

    paper = ("d'Ascoli et al. 2021", "https://arxiv.org/abs/2103.10697")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        init: Init = "local",
        locality_strength: float = 1.0,
        gate: float = 1.0,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        check_choice(init, get_args(Init), "init", "ConViT")
        locality = check_number(locality_strength, "locality_strength", "ConViT")
        self.start_strength = check_number(strength, "strength", "ConViT")
        gate = check_number(gate, "gate", "ConViT")
        weight = torch.empty(num_heads, 3, device=device, dtype=dtype).uniform_(-1, 1) / 3**0.5
        if init == "local":
            weight = (locality * _local_start(num_heads)).to(weight)
        self.weight = nn.Parameter(weight)
        self.gate = nn.Parameter(torch.full((num_heads,), gate, device=device, dtype=dtype))
        self.strength = nn.Parameter(
            torch.full((num_heads,), self.start_strength, device=device, dtype=dtype)
        )

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One mixture with a purely positional attention."""
        dtype = at_least_float32(self.weight.dtype, q.dtype)
        offsets = patch_offsets(layout, self.weight.device, dtype)
        squared = offsets.square().sum(-1, keepdim=True)
        table = self.weight.to(dtype) @ torch.cat([offsets.flip(-1), squared], dim=-1).T
        index = _patches_only(layout)
        if layout.prefix:
            row = table.new_tensor([0.0, -math.inf])  # of prefix queries, of prefix keys
            table = torch.cat([table, row.expand(self.num_heads, 2)], dim=1)
        positional = LookupBias(table[None, :, None, :], index)
        return (Mixture(self._gate(layout, dtype), (ContentScale(0.0), positional)),)

    def _gate(self, layout: TokenLayout, dtype: torch.dtype) -> Tensor:
        """`[1, heads, N, 1]`, or the same for all tokens; 0 for prefix tokens."""
        gate = (self.strength.to(dtype) * self.gate.to(dtype).sigmoid())[None, :, None, None]
        if not layout.prefix:
            return gate
        is_patch = torch.arange(layout.num_tokens, device=gate.device) >= layout.prefix
        return gate * is_patch[:, None]


@memoized
def _patches_only(layout: TokenLayout) -> PairIndex:
    """As `swin_index`; prefix queries have a bucket more, and patches one for prefix keys."""
    index = swin_index(layout, "none")
    if not layout.prefix:
        return index
    patches = index.num_buckets - 1
    return PairIndex(layout, index.buckets, patches + 2, (patches, patches + 1, patches))


def _local_start(heads: int) -> Tensor:
    """`[heads, 3]`, for a locality strength of 1."""
    side = math.isqrt(heads)
    half = (side - 1) / 2
    stencil = [(row - half, column - half) for column in range(side) for row in range(side)]
    wider = [place - half for place in range(-1, side + 1)]
    around = [(row, column) for row in wider for column in wider if (row, column) not in stencil]
    around.sort(key=lambda d: (d[0] ** 2 + d[1] ** 2, d))
    centers = torch.tensor((stencil + around)[:heads], dtype=torch.float64, device="cpu")
    return torch.cat([2 * centers.flip(-1), -torch.ones_like(centers[:, :1])], dim=-1)
