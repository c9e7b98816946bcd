"""Cosine attention in windows, as Swin V2 of timm has it: a forward of its own, same parameters.

These modules write their attention out, so that there is no call to replace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from posenc.functional.precision import at_least_float32

MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class CosineWindows:
    """The adapter of a class of window attention.

    Args:
        path: "module:Class".
        project: of a module: tokens `[B, N, C]` to queries, keys and values `[B, N, 3 C]`.
        own_bias: of a module: its relative position bias `[heads, N, N]`.
    """

    path: str
    project: Callable[[Any, Tensor], Tensor]
    own_bias: Callable[[Any], Tensor]

    def refusal(self, module: Any) -> str | None:
        """Why a module cannot have the forward of this file, None when it can."""
        own = type(module).forward
        if f"{own.__module__}:{own.__qualname__}" == f"{self.path}.forward":
            return None
        return f"{type(module).__name__} has a forward of its own, which posenc would replace"

    def members(self) -> dict[str, Any]:
        """Of the generated class."""
        return {"forward": forward, "_project": self.project, "_own_bias": self.own_bias}


def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """As the module's own, of windows `[images * windows, N, C]` and a mask `[windows, N, N]`."""
    qkv = self._project(x).unflatten(-1, (3, self.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
    out = self._attend(
        *_scaled_unit(self, q, k),
        v,
        attn_mask=_added(self._own_bias(), mask, x.shape[0]),
        dropout_p=self.attn_drop.p if self.attn_drop.training else 0.0,
        scale=1.0,
    )
    return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


def _scaled_unit(self: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of the learned length and keys of length one: their products are the scores."""
    dtype = at_least_float32(q.dtype)  # where the smallest length that divides is not zero
    factor = self.logit_scale.to(dtype).clamp(max=MAX_LOG_SCALE).exp().view(-1, 1, 1)
    unit_q, unit_k = (F.normalize(x.to(dtype), dim=-1) for x in (q, k))
    return (factor * unit_q).to(q.dtype), unit_k.to(k.dtype)


def _added(bias: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    """Bias and mask as one that is added to the scores: `[1 or batch, heads, N, N]`."""
    if mask is None:
        return bias[None]
    images = batch // mask.shape[0]
    return (bias + mask[:, None]).expand(images, -1, -1, -1, -1).flatten(0, 1)


def _project_without_key_bias(self: Any, x: Tensor) -> Tensor:
    if self.q_bias is None:
        projected: Tensor = self.qkv(x)
        return projected
    bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
    if self.qkv_bias_separate:
        return self.qkv(x) + bias
    return F.linear(x, self.qkv.weight, bias)


def _project_at_once(self: Any, x: Tensor) -> Tensor:
    projected: Tensor = self.qkv(x)
    return projected


def _bias_from_table(self: Any) -> Tensor:
    logits = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
    table = 16 * torch.sigmoid(logits)  # [offsets, heads]
    return table[self.relative_position_index].permute(2, 0, 1)


def _bias_of_pairs(self: Any) -> Tensor:
    bias: Tensor = self._relative_positional_encodings()
    return bias[0]


SWIN_V2 = CosineWindows(
    "timm.models.swin_transformer_v2:WindowAttention", _project_without_key_bias, _bias_from_table
)
SWIN_V2_CR = CosineWindows(
    "timm.models.swin_transformer_v2_cr:WindowMultiHeadAttention", _project_at_once, _bias_of_pairs
)
