"""What encodings of both kinds refuse when they are called, and that they run on meta."""

import numpy as np
import pytest
import torch
from random_encodings import randomize_encodings
from tiny_vit import vit

import posenc
from posenc import TokenLayout

LAYOUTS = [TokenLayout(3, 5, prefix) for prefix in (0, 1, 2, 5)] + [TokenLayout(2, 3, 1)]
OWN = TokenLayout(2, 3, 1)
NAMES = posenc.list_encodings()


def build(name, layout=OWN, **options):
    sizes = {"num_heads": 2, "head_dim": 4, "embed_dim": 8}
    return posenc.create_encoding(name, layout=layout, **sizes, **options)


def acts_on_tokens(name):
    return isinstance(build(name), posenc.TokenEncoding)


TOKENS = [name for name in NAMES if acts_on_tokens(name)]
WITH_PARAMETERS = [name for name in NAMES if [*build(name).parameters()]]


def call(encoding, layout, size=OWN, **place):
    if isinstance(encoding, posenc.TokenEncoding):
        return encoding(torch.zeros(2, size.num_tokens, 8, **place), layout)
    q = torch.zeros(2, 2, size.num_tokens, 4, **place)
    return posenc.attend(q, q, q, encoding(q, q, layout))


def test_both_kinds_are_tested():
    assert {"learned", "sinusoidal", "peg"} <= set(TOKENS) < set(NAMES)


@pytest.mark.parametrize("layout", [None, (2, 3), (2, 3, 1), [2, 3, 1], 7, "2x3", {"height": 2}])
@pytest.mark.parametrize("name", NAMES)
def test_a_layout_is_a_token_layout(name, layout):
    encoding = build(name)
    message = (
        rf"^{type(encoding).__name__}: layout must be a posenc.TokenLayout\(height, width, pre"
    )
    with pytest.raises(TypeError, match=message):
        call(encoding, layout)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("name", TOKENS)
def test_tokens_that_are_no_floating_point_numbers(name, dtype):
    encoding = build(name)
    message = (
        rf"{type(encoding).__name__}: tokens must be a floating point tensor, got {dtype}; .*ro"
    )
    with pytest.raises(TypeError, match=message):
        call(encoding, OWN, dtype=dtype)


@pytest.mark.parametrize("tokens", [None, np.zeros((2, 7, 8)), [[0.0]], "tokens"])
@pytest.mark.parametrize("name", TOKENS)
def test_tokens_that_are_no_tensor(name, tokens):
    got = type(tokens).__name__
    with pytest.raises(TypeError, match=rf"tokens must be a floating point tensor, got {got}; "):
        build(name)(tokens, OWN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", TOKENS)
def test_every_floating_dtype_is_kept(name, dtype):
    assert call(build(name).to(dtype), OWN, dtype=dtype).dtype == dtype


@pytest.mark.parametrize(("own", "given"), [("cpu", "meta"), ("meta", "cpu")])
@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_another_device_is_named(name, own, given):
    encoding = build(name, device=own)
    if not encoding.state_dict():  # fixed numbers are computed where the tokens are
        assert call(encoding, OWN, device=given).device.type == given
        return
    message = rf"{type(encoding).__name__} is on {own}, (the tokens|q) on {given}; move it with .to"
    with pytest.raises(ValueError, match=message):
        call(encoding, OWN, device=given)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_on_meta_shapes_come_out(name, layout):
    """On its own grid and on another one."""
    for size in (layout, TokenLayout(layout.width, layout.height + 1, layout.prefix)):
        encoding = build(name, layout, device="meta")
        out, real = call(encoding, size, size, device="meta"), call(build(name, layout), size, size)
        assert out.device.type == "meta"
        assert (out.shape, out.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_meta_is_remembered(name):
    """A real call afterwards must not find tensors without values."""
    posenc.clear_cache()
    layout = TokenLayout(3, 4, 1)
    call(build(name, device="meta").eval(), layout, layout, device="meta")
    with torch.no_grad():
        out = call(build(name).eval(), layout, layout)
    assert out.device.type == "cpu"
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("name", ["learned", "sinusoidal", "peg", "swin", "irpe"])
def test_a_patched_model_runs_on_meta(name):
    options = {"strength": 0.0} if name == "sinusoidal" else {}
    model = randomize_encodings(posenc.patch_model(vit(), name, **options)).to("meta")
    assert model(torch.zeros(2, 3, 12, 20, dtype=torch.float64, device="meta")).shape == (2, 5)
