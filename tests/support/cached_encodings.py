"""Encodings whose biases are remembered, and calls of them."""

import copy

import oracles
import torch

from posenc import IRPE, HumanPart, Quadratic, SwinBias, TokenLayout, attend

LAYOUT = TokenLayout(3, 4, 1)
ENCODINGS = {
    "swin": lambda: SwinBias(LAYOUT, 2),
    "irpe": lambda: IRPE(LAYOUT, 2, 4, mode="bias", method="cross", on="qk"),
    "quadratic": lambda: Quadratic(LAYOUT, 2),
    "human_part": lambda: HumanPart(LAYOUT, 2, strength=1.0),
}


def build(name, dtype=torch.float32):
    return oracles.randomize(ENCODINGS[name]().to(dtype)).eval()


def qkv(tokens=13, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, tokens, 4, generator=generator).to(dtype) for _ in range(3)]


def output(encoding, layout=LAYOUT, backend="sdpa", dtype=torch.float32):
    q, k, v = qkv(layout.num_tokens, dtype)
    with torch.no_grad():
        return attend(q, k, v, encoding(q, k, layout), backend=backend)


def fresh(encoding, layout=LAYOUT, backend="sdpa", dtype=torch.float32, grad=False):
    """The same, by a module in training mode, which remembers nothing."""
    twin = copy.deepcopy(encoding).train()
    q, k, v = qkv(layout.num_tokens, dtype)
    with torch.set_grad_enabled(grad):
        return attend(q, k, v, twin(q, k, layout), backend=backend).detach()
