"""Which backend "auto" uses, and why; the rules come from `benchmarks/bench_attention.py`.

Asks for as little as possible: this runs in every block of every model.
"""

from __future__ import annotations

import math

import torch

from posenc.attention import trust
from posenc.attention.backends import lowrank, sdpa, tiled, triton
from posenc.attention.call import AttentionCall
from posenc.terms import DenseBias, LowRankBias

# Measured on CPUs. Below, a loop over tiles costs more than it saves: for biases that differ
# between images, and for those that do not;
TILED_TOKENS = (128, 160)
# up to here, where tiles are not possible, plain mathematics trains as fast as a mask.
EAGER_TOKENS = 600
# In torch.compile, up to which plain mathematics is fused to be as fast as tiles, or faster.
FUSED_TOKENS = (600, 400)
# A larger mask is mapped into memory anew at each call, which costs more than filling it.
MASK_BYTES = 2**25
# The thin encodings have 3 to 8 columns; a row and a column table of 14x14 patches have 30.
MAX_RANK = 16
# An estimate: kernels on devices are built for head dims up to 128.
DEVICE_WIDTH = 128

WITH_MASK = "fused attention, the biases as its mask"

Choice = tuple[str, str]


def pick(call: AttentionCall) -> Choice:
    """(backend, why in words), among the backends that do not reject the call."""
    if not call.terms:
        return "sdpa", "plain attention"
    if call.query.device.type != "cpu":
        return _on_device(call)
    if call.value_terms:
        return _with_values(call)
    if call.trains_biases:
        return _training(call)
    return _inference(call)


def _with_values(call: AttentionCall) -> Choice:
    """Value tables need the attention matrix, or its sums per row and column."""
    can_tile = _can_tile(call)
    if lowrank.rejects(call) is None and not (can_tile and call.trains_biases):
        return "lowrank", "fused attention that returns the attention summed per row and column"
    if can_tile:
        return "tiled", "value tables need the attention matrix: tile by tile it stays in the cache"
    return "reference", "value tables need the attention matrix, which fused attention hides"


def _training(call: AttentionCall) -> Choice:
    if _prefers_columns(call):
        return "lowrank", "fused attention in O(N) memory"
    if _is_long_enough(call) and _can_tile(call):
        return "tiled", "SDPA would leave its fused path for the gradient of a mask"
    if call.query.shape[2] <= EAGER_TOKENS:
        return "reference", f"as fast as SDPA with a learned mask up to {EAGER_TOKENS} tokens"
    return "sdpa", "the biases as a mask with gradient"


def _inference(call: AttentionCall) -> Choice:
    if _is_remembered(call):
        return "sdpa", "fused attention; the mask of static biases is built once"
    if _prefers_columns(call) or _has_thin_factors(call):
        return "lowrank", "fused attention in O(N) memory"
    # In this order: while something traces the call, the batch may be a symbol.
    if _can_tile(call) and _prefers_tiles(call):
        return "tiled", "biases are looked up where the cache holds them"
    return "sdpa", WITH_MASK


def _can_tile(call: AttentionCall) -> bool:
    """Whether tiles are possible, and where code is compiled, not slower than what it fuses."""
    if tiled.rejects(call) is not None:
        return False
    if not torch.compiler.is_compiling():
        return True
    if call.value_terms and not torch.is_grad_enabled():
        return True
    if not (call.value_terms or call.trains_biases):
        return False
    varied, static = FUSED_TOKENS
    tokens = call.query.shape[2]
    return tokens > varied or (tokens > static and not call.value_terms and not _is_per_image(call))


def _prefers_columns(call: AttentionCall) -> bool:
    """Where tiles would compute the attention twice, thin factors are cheaper.

    Not wide ones: their gradient is a small difference of large sums, 4e-4 off at 1025 tokens
    with alpha 1, and worse with more. It can be asked for by name.
    """
    tokens, head_dim = call.query.shape[2:]
    if tiled.keeps_attention(tokens, head_dim) or call.is_wide:
        return False
    return lowrank.rejects(call) is None and lowrank.rank(call) <= MAX_RANK


def _has_thin_factors(call: AttentionCall) -> bool:
    """Of each image: as a mask or tile by tile they would be multiplied out, without a reason.

    Where no gradient needs them, wide ones are exact enough, but for 16 bits.
    """
    if call.query.dtype != call.dtype:
        return False
    if not all(isinstance(term, LowRankBias) for term in call.biases) or not _is_per_image(call):
        return False
    return lowrank.rejects(call) is None and lowrank.rank(call) <= MAX_RANK


def _prefers_tiles(call: AttentionCall) -> bool:
    if _is_mask(call):
        return False
    return (_is_per_image(call) and _is_long_enough(call)) or _mask_bytes(call) > MASK_BYTES


def _is_long_enough(call: AttentionCall) -> bool:
    per_image, static = TILED_TOKENS
    tokens = call.query.shape[2]
    return tokens >= static or (tokens >= per_image and _is_per_image(call))


def _is_per_image(call: AttentionCall) -> bool:
    return max(tensor.shape[0] for term in call.biases for tensor in term.tensors().values()) > 1


def _on_device(call: AttentionCall) -> Choice:
    is_thin = lowrank.rejects(call) is None and lowrank.width(call) <= DEVICE_WIDTH
    # Wide factors are exact enough for float32 without gradients only.
    is_full = call.query.dtype == call.dtype and not call.trains_biases
    if is_thin and (is_full or not call.is_wide):
        return "lowrank", "no mask in memory (an estimate, not measured on this device)"
    mask_reason = sdpa.rejects(call)
    stock = ("reference", mask_reason) if mask_reason else ("sdpa", WITH_MASK)
    if triton.rejects(call) is not None or not (mask_reason or _prefers_kernels(call)):
        return stock
    is_trusted, why = trust.verdict(call)
    if is_trusted:
        return "triton", f"no mask in memory, nor its gradient (an estimate; kernels {why})"
    return stock[0], f"{stock[1]}; {why}"


def _prefers_kernels(call: AttentionCall) -> bool:
    """By estimate a mask costs 1.1 to 1.3 of plain attention, 2 to 3 with its gradient.

    A table in the kernel costs 1.2 to 1.5, and a lookup per image 2 to 3, which as a mask would
    first have to be written for each image and head.
    """
    if _is_mask(call):
        return False
    return call.trains_biases or _is_per_image(call) or _mask_bytes(call) > MASK_BYTES


def _is_mask(call: AttentionCall) -> bool:
    """Whether the biases are matrices already: nothing is saved by reading them in parts."""
    return all(isinstance(term, DenseBias) for term in call.biases)


def _is_remembered(call: AttentionCall) -> bool:
    """Static biases in eval, as long as the memory for them lasts."""
    biases = call.biases
    memos = [term.memo for term in biases if term.memo is not None]
    if len(memos) < len(biases):
        return False
    if not any(memo.is_empty for memo in memos):  # the usual case, without the size
        return True
    size = _mask_bytes(call)
    return all(memo.may_hold(size) for memo in memos)


def _mask_bytes(call: AttentionCall) -> int:
    shapes = [tensor.shape[:2] for term in call.biases for tensor in term.tensors().values()]
    images, heads = (max(sizes) for sizes in zip(*shapes, strict=True))
    return images * heads * math.prod((call.query.shape[2],) * 2) * call.dtype.itemsize
