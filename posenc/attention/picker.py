"""Which backend "auto" uses, and why; the rules come from `benchmarks/bench_attention.py`."""

from __future__ import annotations

import torch

from posenc.attention import lowrank
from posenc.attention.call import AttentionCall

# Up to here plain mathematics was measured to train as fast as SDPA's unfused path, or faster.
EAGER_TOKENS = 600
# A cautious bound, not tuned: the encodings here need 4 to 8 columns.
MAX_RANK = 16


def pick(call: AttentionCall, rejections: dict[str, str | None]) -> tuple[str, str]:
    """(backend, why in words), among the backends that do not reject the call."""
    if reason := rejections["sdpa"]:
        return "reference", reason
    if not call.biases:
        return "sdpa", "plain attention"
    trains = torch.is_grad_enabled() and any(term.requires_grad for term in call.biases)
    large = call.query.shape[2] > EAGER_TOKENS
    full_precision = call.query.dtype == call.dtype  # 16 bit was not measured
    thin = rejections["lowrank"] is None and lowrank.rank(call) <= MAX_RANK and full_precision
    if thin and trains and lowrank.is_wide(call):
        # The gradient is a small difference of large sums: 6e-4 off at 1025 tokens, alpha 1,
        # and worse with alpha. It can be asked for by name.
        thin = False
    if call.query.device.type != "cpu":
        if thin:
            return "lowrank", "no mask in memory (an estimate, not measured on this device)"
    elif trains and full_precision and not large:
        return (
            "reference",
            "a bias with a gradient takes SDPA's unfused path on the CPU, and plain mathematics "
            f"is as fast or faster up to {EAGER_TOKENS} tokens",
        )
    elif thin and large and not _is_remembered(call):
        return "lowrank", f"fused attention in O(N) memory, faster above {EAGER_TOKENS} tokens"
    return "sdpa", "fused attention, the biases as its mask"


def _is_remembered(call: AttentionCall) -> bool:
    """Static biases in eval: the dense mask is built once."""
    return all(term.memo is not None for term in call.biases)
