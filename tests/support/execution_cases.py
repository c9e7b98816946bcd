"""Patched models to be run in another way than eager, serial calls."""

import pytest
import tiny_vit
import torch
from random_encodings import randomize_encodings

import posenc

CASES = {
    "irpe": ("irpe", {}),
    "irpe qkv": ("irpe", {"on": "qkv"}),
    "irpe bias": ("irpe", {"mode": "bias", "on": "qk", "method": "cross"}),
    "swin": ("swin", {"prefix_pairs": "separate"}),
    "quadratic": ("quadratic", {"strength": 0.0}),
    "human_part": ("human_part", {}),
    "human_part adaptive": ("human_part", {"adaptive": True}),
    "body adaptive": ("body", {"adaptive": True}),
    "rope_mixed": ("rope_mixed", {"strength": 0.0}),
    "sinusoidal": ("sinusoidal", {"strength": 0.0}),
    "learned": ("learned", {"absolute": "hide"}),
    "peg": ("peg", {}),
    "convolutions": ("lpu+local_ffn+conv_projection", {}),
}


# torch's own code warns while it traces.
tracing = pytest.mark.filterwarnings("ignore")
all_cases = pytest.mark.parametrize("case", CASES)


def patched(case, *, share=False, **vit):
    """All parameters random; the mean token makes the last block use every query."""
    encoding, options = CASES[case]
    vit = tiny_vit.vit(**{"global_pool": "avg", "pool_include_prefix": True, **vit})
    model = posenc.patch_model(vit, encoding, share=share, **options)
    return randomize_encodings(model, seed=1)


def step(model, forward=None, x=None):
    """Output and gradients by name; every parameter of an encoding must have one."""
    model.zero_grad()
    forward = model if forward is None else forward
    out = forward(tiny_vit.images(model) if x is None else x)
    out.square().mean().backward()
    assert all(p.grad.any() for _, p in posenc.encoding_parameters(model))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), **gradients}


def assert_same(actual, expected, tolerance=1e-11):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
