"""Which backend "auto" uses, and why; the rules come from `benchmarks/bench_attention.py`."""

from __future__ import annotations

import torch

from posenc.attention import lowrank, sdpa
from posenc.attention.call import AttentionCall

# Up to here plain mathematics was measured to train as fast as SDPA's unfused path, or faster.
EAGER_TOKENS = 600
# A cautious bound, not tuned: the encodings here need 4 to 8 columns.
MAX_RANK = 16


def pick(call: AttentionCall) -> tuple[str, str]:
    """(backend, why in words), among the backends that do not reject the call.

    Asks for as little as possible: this runs in every block of every model.
    """
    if reason := sdpa.rejects(call):
        return "reference", reason
    if not call.biases:
        return "sdpa", "plain attention"
    trains = torch.is_grad_enabled() and any(term.requires_grad for term in call.biases)
    full_precision = call.query.dtype == call.dtype  # 16 bit was not measured
    if call.query.device.type != "cpu":
        if _is_thin(call, trains, full_precision):
            return "lowrank", "no mask in memory (an estimate, not measured on this device)"
    elif call.query.shape[2] > EAGER_TOKENS:
        if not _is_remembered(call) and _is_thin(call, trains, full_precision):
            return "lowrank", f"fused attention in O(N) memory, faster above {EAGER_TOKENS} tokens"
    elif trains and full_precision:
        return (
            "reference",
            "a bias with a gradient takes SDPA's unfused path on the CPU, and plain mathematics "
            f"is as fast or faster up to {EAGER_TOKENS} tokens",
        )
    return "sdpa", "fused attention, the biases as its mask"


def _is_thin(call: AttentionCall, trains: bool, full_precision: bool) -> bool:
    """Whether extra columns are cheap, and as exact as a mask."""
    if not full_precision or lowrank.rejects(call) is not None:
        return False
    if trains and lowrank.is_wide(call):
        # The gradient is a small difference of large sums: 6e-4 off at 1025 tokens, alpha 1,
        # and worse with alpha. It can be asked for by name.
        return False
    return lowrank.rank(call) <= MAX_RANK


def _is_remembered(call: AttentionCall) -> bool:
    """Static biases in eval: the dense mask is built once."""
    return all(term.memo is not None for term in call.biases)
