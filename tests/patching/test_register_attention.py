"""Attention classes of users, made known by one call."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import oracles
import pytest
import timm
import torch
import torch.nn.functional as F
from expected_bias import BIAS
from torch import nn

import posenc
from posenc import TokenLayout, patch_model, patched_encodings, register_attention
from posenc.analysis import capture_attention

LAYOUTS = [(3, 4, 0), (3, 5, 1), (5, 3, 2), (4, 7, 5)]


@register_attention
class OwnAttention(nn.Module):
    """As users write it: what is needed, by names that posenc expects."""

    def __init__(self, dim=8, heads=2):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, attn_mask=None, is_causal=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class OwnSubclass(OwnAttention):
    """Known by its base class."""


class OwnOtherForward(OwnAttention):
    def forward(self, x):
        return self.proj(x)


class OtherNames(nn.Module):
    """Other names, values of another width, a map of the tokens."""

    def __init__(self, dim=8, heads=2):
        super().__init__()
        self.inner = nn.Identity()
        self.inner.heads, self.width = heads, dim // heads
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.proj = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x):
        shape = x.shape
        x = x.flatten(1, 2)
        q, k, v = (
            part(x).unflatten(-1, (self.inner.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2)).view(shape)


register_attention(
    OtherNames,
    map="b h w c",
    num_heads="inner.heads",
    head_dim="width",
    value_dim=lambda module: 2 * module.width,
)


def build(cls=OwnAttention, count=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return oracles.randomize(nn.Sequential(*(cls() for _ in range(count))), 3, 0.4).double()


def tokens(layout):
    generator = torch.Generator().manual_seed(1)
    count = oracles.num_tokens(*layout)
    return torch.randn(2, count, 8, generator=generator, dtype=torch.float64, requires_grad=True)


def randomize_encodings(model):
    for seed, encoding in enumerate(patched_encodings(model).values()):
        oracles.randomize(encoding, seed, 0.3)
    return model


def eager(module, encoding, name, x, layout):
    """The module with its encoding, written out."""
    q, k, v = module.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    out, _ = oracles.attention(q, k, v, BIAS[name](encoding, q, layout, q.shape[-1] ** -0.5))
    return module.proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("cls", [OwnAttention, OwnSubclass])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["irpe", "swin", "human_part"])
def test_a_patch_is_the_mathematics(cls, layout, encoding):
    model, x = build(cls), tokens(layout)
    plain = model(x)
    patch_model(model, encoding, layout=TokenLayout(*layout))
    torch.testing.assert_close(model(x), plain, rtol=1e-10, atol=1e-10)
    randomize_encodings(model)
    found = list(patched_encodings(model).values())
    expected = x
    for module, own in zip(model, found, strict=True):
        expected = eager(module, own, encoding, expected, layout)
    actual = model(x)
    assert (actual - plain).abs().max() > 1e-4
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    parameters = [x, *model.parameters()]
    weights = torch.linspace(-1, 1, actual.numel(), dtype=torch.float64).view_as(actual)
    options = {"allow_unused": True, "materialize_grads": True}
    for a, b in zip(
        torch.autograd.grad((actual * weights).sum(), parameters, **options),
        torch.autograd.grad((expected * weights).sum(), parameters, **options),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    posenc.unpatch_model(model)
    assert torch.equal(model(x), plain)
    assert type(model[0]) is cls


def test_everything_else_works_too(tmp_path):
    model, layout, x = build(), TokenLayout(3, 5, 1), tokens((3, 5, 1)).detach()
    assert "no model of timm" in posenc.supports(model).reason
    assert posenc.supports(model, layout=layout).sites == ("0", "1")
    with capture_attention(model, layout=layout) as captured:
        model(x)
    assert captured.attention["1"].shape == (2, 2, 16, 16)
    randomize_encodings(patch_model(model, "swin", layout=layout))
    assert "3x5 + 1 prefix" in str(posenc.summary(model))
    with capture_attention(model) as captured:
        expected = model(x)
    assert captured.bias["0"].abs().max() > 0
    posenc.save_encodings(model, tmp_path / "own.safetensors")
    fresh = posenc.load_encodings(build(), tmp_path / "own.safetensors")
    for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
    posenc.set_layout(model, TokenLayout(5, 3, 1))
    assert not torch.equal(model(x), expected)


def test_a_mask_of_the_caller_stays():
    model, x = build(count=1)[0], tokens((3, 5, 1))
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    plain = model(x, attn_mask=mask)
    patch_model(model, "swin", layout=TokenLayout(3, 5, 1))
    torch.testing.assert_close(model(x, attn_mask=mask), plain, rtol=1e-10, atol=1e-10)


def test_inside_a_model_of_timm():
    """There the model tells the layout, and timm's own attention is patched beside it."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=(48, 80), depth=2).eval()
    model.blocks[0].attn = OwnAttention(192, 3)
    images = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        plain = model(images)
        patch_model(model, "swin")
        torch.testing.assert_close(model(images), plain)
        assert sorted(patched_encodings(model)) == ["blocks.0.attn.swin", "blocks.1.attn.swin"]
        nn.init.normal_(model.blocks[0].attn.posenc["swin"].table)
        assert (model(images) - plain).abs().max() > 1e-4
        posenc.unpatch_model(model)
        assert torch.equal(model(images), plain)


def test_attention_of_timm_in_another_model_needs_no_registering():
    from timm.layers import Attention

    with pytest.raises(ValueError, match=r"knows timm.layers.attention:Attention already"):
        register_attention(Attention)
    model = nn.Sequential(Attention(8, num_heads=2)).eval()
    x = torch.randn(2, 12, 8)
    plain = model(x)
    patch_model(model, "swin", layout=TokenLayout(3, 4))
    torch.testing.assert_close(model(x), plain)
    nn.init.normal_(model[0].posenc["swin"].table)
    assert (model(x) - plain).abs().max() > 1e-4


def test_a_map_and_sizes_by_other_names():
    model = build(OtherNames)
    patch_model(model, "swin", layout=TokenLayout(3, 5))
    site = model[1]._posenc
    assert (site.num_heads, site.head_dim, site.value_dim) == (2, 4, 8)
    randomize_encodings(model)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)  # another map: its sides are its layout
    table = model[0].posenc["swin"]
    bias = BIAS["swin"](table, torch.zeros(1, 2, 15, 4), (5, 3, 0), 1.0)
    m, flat = model[0], x.flatten(1, 2)
    q, k, v = (p(flat).unflatten(-1, (2, -1)).transpose(1, 2) for p in (m.query, m.key, m.value))
    out, _ = oracles.attention(q, k, v, bias)
    expected = m.proj(out.transpose(1, 2).flatten(2)).view(x.shape)
    torch.testing.assert_close(m(x), expected, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match=r"0 cannot be patched: layout 3x5 .* has prefix tokens"):
        patch_model(build(OtherNames), "swin", layout=TokenLayout(3, 5, 1))


def local_class(heads="num_heads"):
    @lambda cls: register_attention(cls, num_heads=heads)
    class LocalAttention(nn.Module):
        def __init__(self, dim=8, heads=2):
            super().__init__()
            self.num_heads = self.count = heads
            self.head_dim = dim // heads
            self.qkv = nn.Linear(dim, 3 * dim)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.count, -1)).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    return LocalAttention


def test_classes_of_one_name_are_told_apart():
    """A notebook's cell makes another class each time it runs; models of the older one stay."""
    old, new = local_class(), local_class("count")
    other = local_class("missing")
    layout = TokenLayout(3, 5, 1)
    for cls in (old, new):
        patch_model(build(cls), "swin", layout=layout)
    with pytest.raises(ValueError, match=r"no attribute 'missing': say where posenc.register_att"):
        patch_model(build(other), "swin", layout=layout)
    register_attention(other, num_heads="count")  # corrected
    patch_model(build(other), "swin", layout=layout)


def test_a_class_of_main(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(
        "import torch, posenc\n"
        "import torch.nn.functional as F\n"
        "class Own(torch.nn.Module):\n"
        "    num_heads, head_dim = 2, 4\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.qkv = torch.nn.Linear(8, 24)\n"
        "    def forward(self, x):\n"
        "        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)\n"
        "        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)\n"
        "posenc.register_attention(Own)\n"
        "model = posenc.patch_model(Own(), 'swin', layout=posenc.TokenLayout(3, 5))\n"
        "print(model(torch.rand(1, 15, 8)).shape, Own.__module__)\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert run.stdout == "torch.Size([1, 15, 8]) __main__\n"


class WithoutAttention(nn.Module):
    def forward(self, x):
        return x.softmax(-1)


class InNestedFunction(nn.Module):
    def forward(self, x):
        def inner(x):
            return F.scaled_dot_product_attention(x, x, x)

        return inner(x)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (WithoutAttention, "WithoutAttention cannot be patched: its forward does not call F.scal"),
        (OwnOtherForward, "its forward does not call F.scaled_dot_product_attention"),
        (InNestedFunction, "its attention call is inside a nested function"),
        (nn.MultiheadAttention, "knows torch.nn.modules.activation:MultiheadAttention already"),
    ],
)
def test_classes_that_are_refused(cls, reason):
    with pytest.raises(ValueError, match=rf"register_attention: .*{reason}"):
        register_attention(cls)


def test_a_subclass_with_another_forward_is_refused_when_it_is_patched():
    with pytest.raises(ValueError, match=r"OwnOtherForward: its forward does not call F.scaled"):
        patch_model(build(OwnOtherForward), "swin", layout=TokenLayout(3, 5, 1))


@pytest.mark.parametrize("cls", [None, "OwnAttention", int, OwnAttention()])
def test_what_is_no_module_class(cls):
    with pytest.raises(TypeError, match=r"expected a class derived from torch.nn.Module, got"):
        register_attention(cls)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shape": "b n d"}, ValueError, r"shape must be one of \('b h n d', .*got 'b n d'"),
        ({"map": "b w h c"}, ValueError, r"map must be None or one of .*got 'b w h c'"),
        ({"num_heads": 2}, TypeError, r"num_heads must be the name of an attribute or a function"),
        ({"value_dim": [4]}, TypeError, r"value_dim must be the name .*got \[4\]"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"register_attention: {message}"):
        register_attention(OwnSubclass, **options)


@pytest.mark.parametrize("size", [lambda module: 0, lambda module: 2.0, lambda module: "2"])
def test_sizes_that_are_no_sizes(size):
    cls = local_class(size)
    with pytest.raises(ValueError, match=r"\(num_heads, head_dim, value_dim\) = .* of LocalAtt"):
        patch_model(build(cls), "swin", layout=TokenLayout(3, 5, 1))
