"""Positions inside flash attention: Triton kernels that look biases up tile by tile, on CUDA.

No `N x N` tensor is made, forward or backward. Not measured: Triton's interpreter proves the
mathematics, and the kernels are compiled for NVIDIA's sm_80 and sm_90, but none was run on a
device yet.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

from posenc.attention.call import AttentionCall
from posenc.attention.kernels.operands import call_layouts, read_call
from posenc.attention.kernels.ops import fused_attention
from posenc.memo import is_transformed
from posenc.terms import DenseBias, LowRankBias

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_WIDTH = 256  # of a head: a tile has to fit into shared memory
MAX_RANK = 64
MIN_CAPABILITY = (8, 0)
IS_INSTALLED = importlib.util.find_spec("triton") is not None


def rejects(call: AttentionCall) -> str | None:
    """Computes everything but gradients of dense biases and masks, in at most float32."""
    return _rejects_device(call) or _rejects_sizes(call) or _rejects_terms(call)


def compute(call: AttentionCall, is_blocked: bool | None = None) -> Tensor:
    """`[B, heads, N, Dv]`; the value terms from the weights summed per bucket.

    A trial says in which form tables are; else their size decides.
    """
    out, _, sums = fused_attention(*read_call(call, is_blocked))
    if not call.value_terms:
        return out
    result, start = out.to(call.dtype), 0
    for term in call.value_terms:
        own = sums[:, :, start : (start := start + term.index.num_buckets)]
        result = result + own.transpose(-2, -1) @ term.table.to(call.dtype)
    return result.to(call.query.dtype)


def _rejects_device(call: AttentionCall) -> str | None:
    device = call.query.device
    if not IS_INSTALLED:
        return "Triton is not installed, pip install posenc[triton]"
    if is_transformed(call.query) and not torch.compiler.is_compiling():
        return "kernels see neither function transforms nor tensor subclasses, nor jit.trace"
    if _is_interpreted():
        return None
    if device.type != "cuda":
        return f"Triton kernels run on CUDA, the query is on {device.type}"
    if torch.version.hip is not None:
        return "the kernels were not tried on AMD devices"
    if torch.compiler.is_compiling():
        return None  # which cannot see through the question below
    if (capability := _capability(device)) < MIN_CAPABILITY:
        return "compute capability {}.{} is below {}.{}".format(*capability, *MIN_CAPABILITY)
    return None


def _rejects_sizes(call: AttentionCall) -> str | None:
    if call.query.dtype not in DTYPES:
        return f"the kernels accumulate in float32, the query is {call.query.dtype}"
    widths = call.query.shape[-1], call.value.shape[-1]
    if max(widths) > MAX_WIDTH:
        return f"head_dim is {widths[0]} and {widths[1]} for values, more than {MAX_WIDTH}"
    if call.enable_gqa:
        return "the kernels have no grouped queries, use sdpa"
    if not call.has_equal_batches:
        return "query, key and value have different images or heads, expand them first"
    if call.dropout_p == 1:
        return "nothing is left to scale up where every weight is dropped"
    return None


def _rejects_terms(call: AttentionCall) -> str | None:
    if len(layouts := call_layouts(call)) > 1:
        return f"the terms have several layouts: {', '.join(sorted(map(str, layouts)))}"
    rank = sum(term.left.shape[-1] for term in call.biases if isinstance(term, LowRankBias))
    if rank > MAX_RANK:
        return f"low-rank factors of {rank} columns, more than {MAX_RANK}"
    dense = [term.bias for term in call.biases if isinstance(term, DenseBias)]
    dense += [call.attn_mask] if call.attn_mask is not None else []
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in dense):
        return "the gradient of a dense bias, or of a mask, is a matrix that is never made"
    return None


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
