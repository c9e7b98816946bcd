"""PyTorch's fused attention, as the backends that are built on it call it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from posenc._torch import chosen_sdpa_kernel, constant_under_dynamo, enabled_sdpa_kernels

# Until this version cuDNN's backward kernel for compute capability 9 walks the keys in tiles of 128
# but decides by tiles of 64 which of them exist: with a last tile half full, keys that do not
# exist get the score 0, and `exp(0 - logsumexp)` overflows in a row whose logsumexp is below -88.
FIXED_CUDNN = 92600
KEY_TILE = 128


class Operands(NamedTuple):
    """Arguments of `torch.nn.functional.scaled_dot_product_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    dropout_p: float
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def attend(self) -> Tensor:
        """`[B, heads, Nq, Dv]`."""
        if not self._loses_gradients():  # the usual case, without a context
            return _call(F.scaled_dot_product_attention, self)
        with _without_cudnn():
            return _call(F.scaled_dot_product_attention, self)

    def kernel(self) -> str | None:
        """The name of the kernel that PyTorch would choose, None where it does not say."""
        with _without_cudnn() if self._loses_gradients() else contextlib.nullcontext():
            return _call(chosen_sdpa_kernel, self)

    def _loses_gradients(self) -> bool:
        if self.mask is None or self.query.device.type != "cuda" or not torch.is_grad_enabled():
            return False
        if not any(x.requires_grad for x in (self.query, self.key, self.value, self.mask)):
            return False
        return loses_gradients(self.key.shape[2], *_device_facts(self.query.device))


def _call(function: Callable[..., Any], operands: Operands) -> Any:
    query, key, value, mask, dropout_p, is_causal, scale, enable_gqa = operands
    return function(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def _without_cudnn() -> contextlib.AbstractContextManager[Any]:
    enabled = enabled_sdpa_kernels()
    others: list[SDPBackend] = [k for k in enabled if k != SDPBackend.CUDNN_ATTENTION]
    # Who has switched off all but cuDNN gets it.
    return sdpa_kernel(others) if others else contextlib.nullcontext()


def loses_gradients(keys: int, capability: tuple[int, int], cudnn_version: int | None) -> bool:
    """Whether cuDNN attention with a mask may return NaN as the gradient of the query.

    Found with PyTorch 2.11 to 2.14, which prefer cuDNN on these devices (PyTorch 196678).

    Args:
        keys: number of keys.
        capability: compute capability of the device: (9, 0) for an H100 or H200.
        cudnn_version: as `torch.backends.cudnn.version()`, None without cuDNN.
    """
    if cudnn_version is None or cudnn_version >= FIXED_CUDNN or capability[0] != 9:
        return False
    return keys % KEY_TILE == KEY_TILE // 2


@constant_under_dynamo
def _device_facts(device: torch.device) -> tuple[tuple[int, int], int | None]:
    return torch.cuda.get_device_capability(device), torch.backends.cudnn.version()
