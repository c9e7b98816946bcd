"""Which backend "auto" uses, and why; the rules come from `benchmarks/bench_attention.py`."""

from __future__ import annotations

import torch

from posenc.attention.call import AttentionCall

# Up to here plain mathematics was measured to train as fast as SDPA's unfused path, or faster.
EAGER_TOKENS = 600


def pick(call: AttentionCall, rejections: dict[str, str | None]) -> tuple[str, str]:
    """(backend, why in words), among the backends that do not reject the call."""
    if reason := rejections["sdpa"]:
        return "reference", reason
    if _trains_bias_on_cpu(call) and call.query.shape[2] <= EAGER_TOKENS:
        return (
            "reference",
            "a bias with a gradient takes SDPA's unfused path on the CPU, and plain mathematics "
            f"is as fast or faster up to {EAGER_TOKENS} tokens",
        )
    return "sdpa", "fused attention, the biases as its mask" if call.biases else "plain attention"


def _trains_bias_on_cpu(call: AttentionCall) -> bool:
    return (
        call.query.device.type == "cpu"
        and call.query.dtype == call.dtype  # not in 16 bit, where it was not measured
        and torch.is_grad_enabled()
        and any(term.requires_grad for term in call.biases)
    )
