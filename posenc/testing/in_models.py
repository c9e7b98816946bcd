"""Checks of an encoding inside a small vision transformer."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from posenc.analysis import capture_attention
from posenc.patching import (
    encoding_parameters,
    fold_biases,
    patch_model,
    patched_encodings,
    unpatch_model,
)
from posenc.testing.subject import BATCH, Subject, random_tensor, randomize

IMAGE = (32, 48)  # 2x3 patches of 16 pixels


def _model(subject: Subject) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=IMAGE,
            depth=2,
            embed_dim=subject.embed_dim,
            num_heads=subject.num_heads,
            num_classes=5,
        )
    return randomize(model.double(), 0.05).eval()


def _patch(subject: Subject, model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of effects at start, which are checked elsewhere
        return patch_model(model, subject.encoding, **subject.options)


def _images() -> Tensor:
    return random_tensor((BATCH, 3, *IMAGE), 5, torch.float64)


def patched_and_back(subject: Subject) -> None:
    """Keeps a model's keys, and gives it back bit for bit."""
    model, images = _model(subject), _images()
    before, keys = model(images), list(model.state_dict())
    _patch(subject, model)
    assert [key for key in model.state_dict() if ".posenc." not in f".{key}"] == keys
    encodings: Any = list(patched_encodings(model).values())
    if all(encoding.changes_at_start() is False for encoding in encodings):
        assert_close(model(images), before, rtol=0, atol=1e-10)
    for encoding in encodings:
        randomize(encoding)
    has_parameters = any(True for _ in encoding_parameters(model))
    assert not has_parameters or not torch.equal(model(images), before), "nothing changed"
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), model(images))
    unpatch_model(model)
    assert torch.equal(model(images), before)


def trained_in_a_model(subject: Subject) -> None:
    """Trains inside a model."""
    model = _patch(subject, _model(subject)).train()
    model(_images()).square().sum().backward()
    without = [n for n, p in encoding_parameters(model) if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}"


def captured(subject: Subject) -> None:
    """Is seen by capture_attention as it is computed."""
    model = _patch(subject, _model(subject))
    for encoding in patched_encodings(model).values():
        randomize(encoding)
    images = _images()
    with torch.no_grad():
        expected = model(images)
        with capture_attention(model) as captured:
            assert torch.equal(model(images), expected)
    for weights in captured.attention.values():
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def folded(subject: Subject) -> None:
    """Gives the same after fold_biases, if it is static."""
    model = _patch(subject, _model(subject))
    encodings: Any = list(patched_encodings(model).values())
    for encoding in encodings:
        randomize(encoding)
    if not all(getattr(encoding, "is_static", False) for encoding in encodings):
        return
    with torch.no_grad():
        expected = model(_images())
        assert_close(fold_biases(model)(_images()), expected, rtol=1e-10, atol=1e-10)


def exported(subject: Subject) -> None:
    """Exports with torch.export."""
    model = _patch(subject, _model(subject)).float()
    for encoding in patched_encodings(model).values():
        randomize(encoding)
    images = _images().float()
    with torch.no_grad():
        expected = model(images)
        program = torch.export.export(model, (images,))
        assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-5)


CHECKS = (patched_and_back, trained_in_a_model, captured, folded, exported)
