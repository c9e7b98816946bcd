"""What `encoding` may be: names, classes, functions, several of them."""

import functools

import pytest
import torch
from patch_cases import custom
from random_encodings import randomize_encodings
from tiny_vit import eager, images, vit
from torch import nn

import posenc
from posenc import (
    IRPE,
    AttentionEncoding,
    SwinBias,
    TokenEncoding,
    patch_model,
    patched_encodings,
    unpatch_model,
)
from posenc.terms import DenseBias


class Constant(AttentionEncoding):
    """A user's own encoding: one number per head for every pair on the diagonal."""

    def changes_at_start(self):
        return False

    def __init__(self, layout, num_heads, head_dim=None, *, device=None, dtype=None):
        super().__init__(layout, num_heads, head_dim)
        self.weight = nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype))

    def terms(self, q, k, layout, scale):
        eye = torch.eye(layout.num_tokens, device=q.device, dtype=q.dtype)
        return (DenseBias(self.weight[None, :, None, None] * eye),)


class Shift(TokenEncoding):
    def changes_at_start(self):
        return False

    def __init__(self, layout, embed_dim, *, device=None, dtype=None):
        super().__init__(layout, embed_dim)
        self.shift = nn.Parameter(torch.zeros(embed_dim, device=device, dtype=dtype))

    def encode(self, x, layout):
        return x + self.shift


@pytest.mark.parametrize(
    ("encoding", "options", "names"),
    [
        ("irpe", {}, {"irpe"}),
        (" peg + irpe ", {}, {"peg", "irpe"}),
        (IRPE, {"mode": "bias"}, {"irpe"}),
        (["peg", SwinBias, "irpe"], {}, {"peg", "swin", "irpe"}),
        (["peg+irpe", SwinBias], {}, {"peg", "swin", "irpe"}),
        (custom, {"fill": 2.0}, {"custom"}),
        (functools.partial(custom, fill=1.0), {}, {"partial"}),
        (lambda layout, *sizes: SwinBias(layout, sizes[0]), {}, {"custom"}),
        (Constant, {}, {"constant"}),
        ([Shift, Constant], {}, {"shift", "constant"}),
    ],
)
def test_kinds_of_encoding(encoding, options, names):
    model = vit()
    x = images(model)
    expected = model(x)
    patch_model(model, encoding, **options)
    assert {key.rpartition(".")[2] for key in patched_encodings(model)} == names
    assert {p.dtype for _, p in posenc.encoding_parameters(model)} == {torch.float64}
    randomize_encodings(model)
    assert not torch.allclose(model(x), expected, rtol=1e-3)
    unpatch_model(model)
    assert torch.equal(model(x), expected)


def test_own_encoding_equals_the_formula():
    model = randomize_encodings(patch_model(vit(), Constant))
    found = patched_encodings(model)
    x = images(model)

    def bias(name, q, k):
        weight = found[f"{name}.constant"].weight
        return weight[:, None, None] * torch.eye(16, dtype=torch.float64)

    torch.testing.assert_close(model(x), eager(model, x, bias), rtol=1e-10, atol=1e-10)


def test_options_go_to_their_encoding():
    options = {"irpe": {"mode": "bias", "init": "paper"}, "kernel_size": 5}
    model = patch_model(vit(), "peg+irpe", **options)
    found = patched_encodings(model)
    assert found["blocks.0.attn.irpe"].mode == "bias"
    assert found["blocks.0.peg"].kernel_size == 5
    assert options == {"irpe": {"mode": "bias", "init": "paper"}, "kernel_size": 5}
