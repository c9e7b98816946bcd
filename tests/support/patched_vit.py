"""Tiny patched models in training: cases, one optimizer step, comparisons."""

from __future__ import annotations

import pytest
import timm
import torch
from random_encodings import randomize_encodings
from timm.optim import create_optimizer_v2
from tiny_vit import images, vit

from posenc import encoding_parameters, patch_model

CASES = {
    "irpe": {"encoding": "irpe"},
    "irpe shared": {"encoding": "irpe", "share": True},
    "swin shared": {"encoding": "swin", "share": True},
    "peg+learned": {"encoding": "peg+learned"},
    "peg+learned shared": {"encoding": "peg+learned", "share": True},
    "removed": {"encoding": "swin+learned", "absolute": "hide"},
}
each_case = pytest.mark.parametrize("case", CASES)
some_cases = pytest.mark.parametrize("case", ["irpe", "swin shared", "peg+learned"])


def patched(case, model=None, seed=3):
    """A model patched as the case says, or with this encoding."""
    options = CASES.get(case, {"encoding": case})
    return randomize_encodings(patch_model(model or vit(), **options), seed=seed)


def encoding_names(model):
    return [name for name, _ in encoding_parameters(model)]


def values(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(one, other):
    assert list(one) == list(other)
    for key in one:
        assert torch.equal(one[key], other[key]), key


def train_step(model, optimizer, seed=0):
    """Every token and the head are in the loss, so that every parameter has a gradient."""
    optimizer.zero_grad()
    features = model.forward_features(images(model, seed=seed))
    (features.square().mean() + model.forward_head(features).square().mean()).backward()
    optimizer.step()


def adamw(model, lr=0.01):
    return create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.05)


def created(**options):
    """As in a training script, but tiny."""
    sizes = {"img_size": (48, 80), "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()
