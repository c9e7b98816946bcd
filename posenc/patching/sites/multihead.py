"""`torch.nn.MultiheadAttention` with position terms: a forward of its own on the same parameters.

The module's forward leads to fused kernels and to functions that take no terms, so that there is
no call to replace.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posenc.patching.sites.tokens import encode_input


def refusal(module: Any) -> str | None:
    """Why a module cannot have the forward of this file, None when it can."""
    if type(module).forward is not nn.MultiheadAttention.forward:
        return f"{type(module).__name__} has a forward of its own, which posenc would replace"
    if module.in_proj_weight is None:
        return (
            "keys or values of another width than the queries (kdim, vdim) are those of cross "
            "attention, and position terms need self-attention"
        )
    if module.bias_k is not None or module.add_zero_attn:
        return "add_bias_kv and add_zero_attn append a key that has no position"
    return None


def members() -> dict[str, Any]:
    """Of the generated class."""
    # nn.TransformerEncoderLayer would compute attention itself, from the parameters, in eval:
    # it asks for this attribute first.
    return {"forward": forward, "_qkv_same_embed_dim": property(lambda self: False)}


def forward(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, None]:
    """As `nn.MultiheadAttention`, for self-attention without returned weights."""
    _check_call(self, query, key, value, attn_mask, need_weights, is_causal)
    if key_padding_mask is not None:
        _check_mask(self, "key_padding_mask", key_padding_mask, _tokens_of(self, query))
    x = encode_input(self, _batch_first(self, query))
    qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
    qkv = qkv.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind()
    out = self._attend(
        q,
        k,
        v,
        attn_mask=_added_mask(self, x, attn_mask, key_padding_mask),
        dropout_p=self.dropout if self.training else 0.0,
    )
    out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
    return _as_given(self, out, query), None


def _batch_first(self: Any, tokens: Tensor) -> Tensor:
    """`[B, N, C]` of `[N, C]`, `[B, N, C]` or, without batch_first, `[N, B, C]`."""
    if tokens.dim() == 2:
        return tokens[None]
    return tokens if self.batch_first else tokens.transpose(0, 1)


def _as_given(self: Any, out: Tensor, query: Tensor) -> Tensor:
    """Inverse of `_batch_first`."""
    if query.dim() == 2:
        return out[0]
    return out if self.batch_first else out.transpose(0, 1)


def _tokens_of(self: Any, query: Tensor) -> tuple[int, ...]:
    """Shape of a mask of keys."""
    shape = tuple(_batch_first(self, query).shape[:2])
    return shape if query.dim() == 3 else shape[1:]


def _check_call(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    need_weights: bool,
    is_causal: bool,
) -> None:
    name = self._posenc.name
    if query is not key or key is not value:
        raise ValueError(
            f"posenc: {name} was patched for self-attention, where query, key and value are the "
            "same tensor, and got different ones: leave cross attention out with blocks="
        )
    if query.is_nested:
        raise ValueError(
            f"posenc: {name} got a nested tensor, whose tokens have lost their places: set "
            "use_nested_tensor = False on the nn.TransformerEncoder (enable_nested_tensor=False "
            "when it is made)"
        )
    if query.dim() not in (2, 3):
        raise ValueError(
            f"posenc: {name} takes [N, C] or a batch of it (3 dimensions), got {list(query.shape)}"
        )
    if need_weights:
        raise ValueError(
            f"posenc: {name} does not return attention weights: call it with need_weights=False "
            "(True is the default of nn.MultiheadAttention)"
        )
    if is_causal and attn_mask is None:
        raise ValueError(
            f"posenc: {name} got is_causal=True, which is a hint about attn_mask, without "
            "attn_mask: pass the mask"
        )


def _added_mask(
    self: Any, x: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
) -> Tensor | None:
    """Both masks as one that is added to the scores; True means masked out in this module."""
    batch, tokens, _ = x.shape
    masks = []
    if attn_mask is not None:
        every = (batch * self.num_heads, tokens, tokens)
        _check_mask(self, "attn_mask", attn_mask, every[1:], every)
        mask = _added(attn_mask, x.dtype)
        masks.append(mask if mask.dim() == 2 else mask.unflatten(0, (batch, self.num_heads)))
    if key_padding_mask is not None:
        masks.append(_added(key_padding_mask, x.dtype).view(batch, 1, 1, tokens))
    return sum(masks[1:], masks[0]) if masks else None


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _check_mask(self: Any, name: str, mask: Tensor, *shapes: tuple[int, ...]) -> None:
    right_dtype = mask.dtype == torch.bool or mask.is_floating_point()
    if not right_dtype or tuple(mask.shape) not in shapes:
        raise ValueError(
            f"posenc: {self._posenc.name} takes {name} boolean (True = masked out) or floating "
            f"point (added), of shape {' or '.join(str(list(s)) for s in shapes)}, got "
            f"{mask.dtype} {list(mask.shape)}"
        )
