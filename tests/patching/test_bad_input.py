"""Bad input: an exception that says what to do, and the model as it was."""

import contextlib
import itertools
import warnings

import pytest
import torch
from patch_cases import OwnAttention, sites, without_grid_size
from timm.layers import Attention
from tiny_vit import snapshot, vit
from torch import nn

import posenc
from posenc import IRPE, SwinBias, TokenLayout, patch_model, patched_encodings, unpatch_model


def misfits():
    def share_sizes():
        model = vit()
        model.blocks[1].attn = Attention(16, 4).double()
        return model

    def renamed():
        model = vit()
        model.blocks[0].attn._attend = 3
        return model

    def hooked():
        model = vit()
        model.blocks[0].attn.forward = model.blocks[0].attn.forward
        return model

    def quantized():
        model = vit()
        model.cls_token = nn.Parameter(torch.zeros(1, 1, 16, dtype=torch.int8), requires_grad=False)
        return model

    return {
        "unknown name": (vit, {"encoding": "iprp"}, "unknown encoding 'iprp'. Did you mean 'irpe'"),
        "no close name": (
            vit,
            {"encoding": "zzz"},
            "unknown encoding 'zzz'. There are: .*human_part",
        ),
        "unknown in sum": (
            vit,
            {"encoding": "peg+shwin"},
            "unknown encoding 'shwin'. Did you mean 'swin'",
        ),
        "empty": (vit, {"encoding": []}, "must name each encoding once, got none"),
        "repeated": (vit, {"encoding": "irpe+irpe"}, "each encoding once, got irpe, irpe"),
        "option": (
            vit,
            {"metod": "cross"},
            r"irpe has no option 'metod'\. Did you mean 'method'\?",
        ),
        "far option": (vit, {"zzz": 1}, "irpe has no option 'zzz'. Its options: mode, method"),
        "ambiguous": (
            vit,
            {"encoding": "peg+irpe", "init": "paper"},
            r"'init' is ambiguous, peg, irpe have it: .* peg=dict\(init='paper'\)",
        ),
        "nobody's option": (
            vit,
            {"encoding": "peg+irpe", "kernel_sise": 3},
            "none of peg, irpe has an option 'kernel_sise'. Did you mean 'kernel_size'",
        ),
        "nested option": (
            vit,
            {"encoding": "peg+irpe", "irpe": {"rato": 3}},
            "irpe has no option 'rato'. Did you mean 'ratio'",
        ),
        "refused option": (vit, {"mode": "bias", "on": "v"}, "bias mode on v does not exist"),
        "choice": (vit, {"method": "manhattan"}, "method must be one of 'product', .*'manhattan'"),
        "width": (
            lambda: vit(embed_dim=18),
            {"encoding": "sinusoidal"},
            "embed_dim must be a multiple of 4 .* got 18",
        ),
        "backend": (vit, {"backend": "flash"}, "unknown attention backend 'flash'"),
        "absolute": (vit, {"absolute": "remove"}, "absolute must be .* got 'remove'"),
        "no table": (
            lambda: vit(pos_embed="none"),
            {"encoding": "learned", "absolute": "hide"},
            "has no absolute position table",
        ),
        "table rows": (
            without_grid_size,
            {"encoding": "learned", "absolute": "hide", "layout": TokenLayout(2, 2, 1)},
            "table has 16 rows .*, the layout 2x2 \\+ 1 prefix has 5 tokens",
        ),
        "share": (share_sizes, {"share": True}, r"equal .* got \[\(2, 8, .*\), \(4, 4, .*\)\]"),
        "attribute": (renamed, {}, "blocks.0.attn already has an attribute '_attend'"),
        "hook": (
            hooked,
            {},
            "blocks.0.attn cannot be patched: its forward was replaced on the ins",
        ),
        "quantized": (quantized, {}, "has torch.int8 parameters: patch the floating point model"),
        "two": (
            lambda: nn.ModuleDict({"a": vit(), "b": vit()}),
            {},
            r"found 2 vision transformers \(a, b\): patch each by itself",
        ),
        "none": (
            lambda: nn.Sequential(nn.Linear(3, 3)),
            {},
            "found no model that posenc knows in Seq",
        ),
    }


@pytest.mark.parametrize("case", misfits())
def test_bad_input_leaves_the_model_untouched(case):
    build, arguments, message = misfits()[case]
    model = build()
    before = snapshot(model)
    rng = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        patch_model(model, **arguments)
    assert snapshot(model) == before
    assert not posenc.is_patched(model)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    ("encoding", "options", "message"),
    [
        (3, {}, r"encoding must be a name, .* got 3"),
        (nn.Linear, {}, "encoding must be a name, an encoding class, .* got <class"),
        (IRPE(TokenLayout(3, 5, 1), 2, 8), {}, "encoding must be a name"),
        (lambda *sizes: nn.Identity(), {}, "the callable must return a posenc.AttentionEncoding"),
        ("irpe", {"layout": (3, 5, 1)}, r"layout must be a posenc.TokenLayout.*got \(3, 5, 1\)"),
    ],
)
def test_bad_types_leave_the_model_untouched(encoding, options, message):
    model = vit()
    before = snapshot(model)
    with pytest.raises(TypeError, match=message):
        patch_model(model, encoding, **options)
    assert snapshot(model) == before


class WithoutAttention(nn.Module):
    def __init__(self, dim, **options):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear(x)


def test_a_model_without_attention():
    model = vit(block_fn=WithoutAttention)
    before = snapshot(model)
    with pytest.raises(ValueError, match="found no attention in the blocks of VisionTransformer"):
        patch_model(model, "irpe")
    assert snapshot(model) == before
    assert not posenc.supports(model)
    patch_model(model, "peg")  # needs none
    assert set(patched_encodings(model)) == {"blocks.0.peg"}


def test_refused_attention_can_be_left_out():
    model = vit(attn_layer=OwnAttention)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"blocks.0.attn cannot be patched: OwnAttention: .*its parent class"
    ):
        patch_model(model)
    assert snapshot(model) == before
    model.blocks[1] = vit(seed=3).blocks[1]
    patch_model(model, blocks=[1])
    assert sites(model) == ["blocks.1.attn"]


class Failing(SwinBias):
    """Fails at the second site."""

    built = itertools.count(0)

    def __init__(self, layout, num_heads, *, device=None, dtype=None):
        super().__init__(layout, num_heads, device=device, dtype=dtype)
        if next(self.built) == 2:
            raise RuntimeError("no more memory")


def test_a_failure_half_way_leaves_the_model_untouched():
    model = vit(depth=3)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no more memory"):
        patch_model(model, Failing)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["keys", "items", "pop", "float", "type"])
def test_an_awkward_name_leaves_no_half_patched_model(name):
    """A name that nn.ModuleDict has already: accepted or refused, but not half done."""

    def build(layout, num_heads, head_dim, embed_dim):
        return SwinBias(layout, num_heads)

    build.__name__ = name
    model = vit()
    before = snapshot(model)
    with contextlib.suppress(ValueError):  # a refusal is as good
        patch_model(model, build)
    if posenc.is_patched(model):
        assert set(patched_encodings(model)) == {f"blocks.{i}.attn.{name}" for i in (0, 1)}
        unpatch_model(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["irpe", "learned"])
def test_device_and_dtype_are_those_of_the_model(name):
    """Given as options, they are refused by name or obeyed."""
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match="dtype"):
        patch_model(model, name, dtype=torch.float32)
    assert snapshot(model) == before


def test_patching_twice():
    model = patch_model(vit(), "peg+irpe")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"already patched with peg, irpe; call posenc.unpatch_mo"):
        patch_model(model, "swin")
    assert snapshot(model) == before
    patch_model(unpatch_model(model), "swin")
    assert set(patched_encodings(model)) == {"blocks.0.attn.swin", "blocks.1.attn.swin"}


def test_a_scripted_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        scripted = torch.jit.trace(nn.Linear(3, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"scripted or traced model .* patch the original model"):
        patch_model(scripted)
    assert "scripted or traced" in str(posenc.supports(scripted))


@pytest.mark.parametrize("thing", [None, "vit_tiny", vit])
def test_no_module(thing):
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got "):
        patch_model(thing)


def test_a_compiled_model():
    compiled = torch.compile(vit(), backend="eager")
    with pytest.raises(ValueError, match=r"already wrapped .OptimizedModule.* patch first"):
        patch_model(compiled)
