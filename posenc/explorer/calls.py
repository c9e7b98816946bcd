"""What a page needs of attention calls, and the means of queries and keys over images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posenc.analysis.distance import mean_attention_distance
from posenc.analysis.logit_pairs import native_bias
from posenc.analysis.logit_parts import centered
from posenc.attention.api import matrix_of
from posenc.attention.call import AttentionCall
from posenc.attention.lower import Part, lower
from posenc.explorer.numbers import Numbers
from posenc.layout import TokenLayout
from posenc.patching.observe import observe_attention
from posenc.terms import BiasTerm, LookupBias, LowRankBias

LATER_CALL = ", call "  # before its number, in the name of a call that is not a module's first


@dataclass
class Seen:
    """The attention calls of one forward, by module and, where it calls twice, number of the call.

    Args:
        calls: name -> (call, layout of its tokens), in the order in which they ran.
        left_out: name of a module that a page cannot show -> why.
    """

    calls: dict[str, tuple[AttentionCall, TokenLayout]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class _Observer:
    """Keeps the calls of one module."""

    def __init__(self, name: str, seen: Seen, num_images: int) -> None:
        self.name, self.seen, self.num_images = name, seen, num_images
        self.count = 0

    def start(self) -> None:
        """A forward begins."""
        self.count = 0

    def __call__(self, call: AttentionCall, layout: TokenLayout) -> None:
        """An attention call, as a site tells it."""
        self.count += 1
        name = self.name if self.count == 1 else f"{self.name}{LATER_CALL}{self.count}"
        reason = _reason(call, self.num_images)
        if reason is None:
            self.seen.calls[name] = (call, layout)
        else:
            self.seen.left_out[name] = reason


def watch(model: nn.Module, images: Tensor) -> Seen:
    """Runs the model on `[B, 3, H, W]` and keeps what its attention modules computed from.

    Raises:
        ValueError: none of its attention can be shown, with the reasons.
    """
    seen = Seen()

    def observer(name: str) -> _Observer:
        return _Observer(name, seen, len(images))

    with torch.no_grad(), observe_attention(model, None, observer, "explore") as watched:
        model(images)
    seen.left_out.update(watched.left_out)
    if not seen.calls:
        reasons = "; ".join(dict.fromkeys(seen.left_out.values())) or "no attention module ran"
        raise ValueError(f"no attention of the model can be explored: {reasons}")
    return seen


def _reason(call: AttentionCall, num_images: int) -> str | None:
    """Why a call cannot be shown on the image, None where it can."""
    if call.is_causal:
        return "its attention is causal"
    if call.query.shape[0] != num_images:
        return "it sees windows, not the whole image"
    if call.query.shape[:3] != call.key.shape[:3]:
        return "its keys are not the tokens of its queries"
    return None


def means_over(model: nn.Module, images: Tensor, batch_size: int = 8) -> dict[str, list[Tensor]]:
    """Name of a call -> means over images of its queries and keys, `[heads, N, D]` each.

    As they enter the logits, turned or normalized, keys centered over tokens. Calls that mix
    attentions have none.
    """
    sums: dict[str, list[Tensor]] = {}
    for chunk in images.split(batch_size):
        for name, (call, _) in watch(model, chunk).calls.items():
            parts = lower(call)
            if len(parts) > 1:
                continue
            both = [side.sum(dim=0) for side in _sides(parts[0].call)]
            before = sums.get(name, [torch.zeros(())] * 2)
            sums[name] = [old.to(new) + new for old, new in zip(before, both, strict=True)]
    return {name: [total / len(images) for total in totals] for name, totals in sums.items()}


def _sides(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Queries and keys; what all keys share, which softmax does not see, would cost bits."""
    return call.query.to(call.dtype), centered(call.key.to(call.dtype))


def describe_call(call: AttentionCall, layout: TokenLayout, numbers: Numbers) -> dict[str, Any]:
    """Of one image: how far each head looks, and the parts whose weighted sum attention is."""
    with torch.no_grad():
        distance = mean_attention_distance(matrix_of(call), layout)[0]
    return {
        "distance": finite(distance),
        "parts": [_describe_part(part, numbers) for part in lower(call)],
    }


def finite(numbers: Tensor) -> list[float | None]:
    """As JSON can hold them: None for what is no number."""
    return [value if math.isfinite(value) else None for value in numbers.tolist()]


def _describe_part(part: Part, numbers: Numbers) -> dict[str, Any]:
    call = part.call
    query, key = _sides(call)
    native = native_bias(call)
    return {
        "weight": None if part.weight is None else numbers.add(part.weight[0], torch.float32),
        "scale": call.scale,
        "query": numbers.add_half(query[0]),
        "key": numbers.add_half(key[0]),
        "native": None if native is None else numbers.add_half(native[0].to(call.dtype)),
        "biases": [_describe_bias(term, numbers) for term in call.biases],
    }


def _describe_bias(term: BiasTerm, numbers: Numbers) -> dict[str, Any]:
    """Small tables keep 32 bits; so do factors, whose products may cancel each other."""
    if isinstance(term, LookupBias):
        own, table = term.read_by, term.lookup[0]
        return {
            "kind": "lookup",
            "by": own,
            "table": numbers.add(table, torch.float32 if own == "one" else torch.float16),
            "index": numbers.add_index(term.index.dense()),
        }
    if isinstance(term, LowRankBias):
        left, right = (numbers.add(x[0], torch.float32) for x in (term.left, term.right))
        return {"kind": "low rank", "left": left, "right": right}
    return {"kind": "dense", "bias": numbers.add_half(term.dense()[0])}
