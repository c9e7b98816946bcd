"""Attention of a whole model as mathematics: every SDPA call computed eagerly, plus a bias.

Knows nothing of posenc: it stands in for `F.scaled_dot_product_attention` while a model runs, and
for the softmax of Swin V2, which writes its attention out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator

import torch.nn.functional as F
from timm.models.swin_transformer_v2 import WindowAttention
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention
from timm.models.twins import LocallyGroupedAttn
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Bias = Callable[[str, Tensor, Tensor], "Tensor | float"]
WRITTEN_OUT = (WindowAttention, WindowMultiHeadAttention)
QUERY_AND_KEY = (("q", "query"), ("k", "key"))  # as their forwards name them


@dataclasses.dataclass(frozen=True)
class Call:
    """An attention call: `q` and `k` are `[B, heads, N, D]`; `shape` is that of q as given."""

    name: str
    shape: tuple[int, ...]
    q: Tensor
    k: Tensor
    mask: Tensor | None


def heads_axis(module: nn.Module) -> int:
    """Axis of the heads in q, k and v; tokens and channels are the last two."""
    return 2 if isinstance(module, LocallyGroupedAttn) else 1


def heads_first(x: Tensor, axis: int) -> Tensor:
    """`[..., N, D]` with heads at `axis` -> `[B, heads, N, D]`; windows go into the batch."""
    return x.movedim(axis, -3).flatten(0, -4)


def heads_back(x: Tensor, axis: int, like: tuple[int, ...]) -> Tensor:
    """Inverse of `heads_first`; `like` is the original shape, except for the last axis."""
    batch = [size for place, size in enumerate(like[:-2]) if place != axis]
    return x.unflatten(0, batch).movedim(-3, axis)


@contextlib.contextmanager
def biased_attention(model: nn.Module, bias: Bias | None = None) -> Iterator[list[Call]]:
    """Within it, `model` computes `softmax(scale q k^T + mask + bias(name, q, k)) v` eagerly.

    `name` is that of the attention module in `model`; q and k are `[B, heads, N, D]`, windows in
    the batch. Attention that would not go through SDPA is made to. Yields the calls so far.
    """
    off = [m for m in model.modules() if getattr(m, "fused_attn", True) is False]
    for module in off:
        module.fused_attn = True
    calls: list[Call] = []
    try:
        with _Eager(model, bias or (lambda name, q, k: 0.0), calls):
            yield calls
    finally:
        for module in off:
            module.fused_attn = False


class _Eager(TorchFunctionMode):
    def __init__(self, model: nn.Module, bias: Bias, calls: list[Call]) -> None:
        super().__init__()
        self.modules = {id(module): (name, module) for name, module in model.named_modules()}
        self.bias = bias
        self.calls = calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            name, module, _ = self.caller()
            return self.attention(name, module, *args, **kwargs)
        if function in (F.softmax, Tensor.softmax):
            name, module, names = self.caller(WRITTEN_OUT)
            if module is not None:
                return (args[0] + self.cosine_bias(name, module, args[0], names)).softmax(-1)
        return function(*args, **kwargs)

    def caller(self, kind=nn.Module):
        """Name, module and local names of the forward that is running; None, None, {} outside."""
        frame = sys._getframe(2)
        while frame is not None:
            name, module = self.modules.get(id(frame.f_locals.get("self")), (None, None))
            if isinstance(module, kind):
                return name, module, frame.f_locals
            frame = frame.f_back
        assert kind is WRITTEN_OUT, "attention outside the model"
        return None, None, {}

    def cosine_bias(self, name, module, scores, names):
        """Of an attention whose scores, with all that is added to them, are given."""
        q, k = (names[short] if short in names else names[long] for short, long in QUERY_AND_KEY)
        q, k = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) for x in (q, k))
        factor = module.logit_scale.exp().clamp(max=100).reshape(-1, 1, 1)
        q = factor * q
        own = scores - q @ k.transpose(-2, -1)
        self.calls.append(Call(name, tuple(q.shape), q, k, own))
        return self.bias(name, q, k)

    def attention(
        self,
        name,
        module,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
    ):
        assert dropout_p == 0.0
        assert not is_causal
        own_shape = tuple(query.shape)
        if query.dim() == 3:  # SAM: heads in the batch
            heads = module.num_heads
            query, key, value = (x.unflatten(0, (-1, heads)) for x in (query, key, value))
            attn_mask = attn_mask if attn_mask is None else attn_mask.unflatten(0, query.shape[:2])
        axis = heads_axis(module)
        q, k, v = (heads_first(x, axis) for x in (query, key, value))
        mask = attn_mask
        if mask is not None:
            assert mask.dtype == query.dtype
            mask = heads_first(mask.expand(*query.shape[:-1], key.shape[-2]), axis)
        self.calls.append(Call(name, tuple(query.shape), q, k, mask))
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        scores = scale * q @ k.transpose(-2, -1) + (0.0 if mask is None else mask)
        probabilities = (scores + self.bias(name, q, k)).softmax(-1)
        result = heads_back(probabilities @ v, axis, tuple(query.shape))
        return result if len(own_shape) == 4 or result.dim() == 5 else result.flatten(0, 1)
