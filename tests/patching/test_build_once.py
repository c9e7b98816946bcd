"""An encoding is built once for each place that it goes to, and kept."""

from __future__ import annotations

import pytest
import timm
import tiny_global
import torch
from torch import nn

import posenc
from posenc import PEG, LearnedAbsolute, SwinBias, patch_model


def vit(depth=3):
    return timm.create_model("vit_tiny_patch16_224", img_size=(48, 80), depth=depth)


class Counted(SwinBias):
    count = 0

    def __init__(self, layout, num_heads):
        super().__init__(layout, num_heads)
        type(self).count += 1


def counting(make):
    calls = []

    def build(layout, num_heads, head_dim, embed_dim):
        calls.append(layout)
        return make(layout, num_heads, head_dim, embed_dim)

    return build, calls


def swin(layout, num_heads, head_dim, embed_dim):
    return SwinBias(layout, num_heads)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 3), ({"share": True}, 1), ({"blocks": [0, 2]}, 2), ({"blocks": [1], "share": True}, 1)],
)
def test_a_callable_for_attention(options, expected):
    build, calls = counting(swin)
    model = patch_model(vit(), build, **options)
    assert len(calls) == expected
    assert len(posenc.patched_encodings(model)) == expected


@pytest.mark.parametrize(("share", "expected"), [(False, 3), (True, 1)])
def test_a_class_for_attention(share, expected):
    Counted.count = 0
    patch_model(vit(), Counted, share=share)
    assert Counted.count == expected


@pytest.mark.parametrize(
    ("make", "share", "expected"),
    [
        (lambda layout, *sizes: PEG(layout, sizes[2], after=[0, 2]), False, 2),
        (lambda layout, *sizes: PEG(layout, sizes[2], after=[0, 2]), True, 1),
        (lambda layout, *sizes: LearnedAbsolute(layout, sizes[2]), False, 1),
    ],
)
def test_a_callable_for_tokens(make, share, expected):
    build, calls = counting(make)
    model = patch_model(vit(), build, share=share)
    assert len(calls) == expected
    assert model(torch.rand(1, 3, 48, 80)).shape == (1, 1000)


def test_windows_beside_whole_grids():
    """In SAM most blocks see a window: what acts on tokens is built for all of them at once."""
    build, calls = counting(lambda layout, *sizes: LearnedAbsolute(layout, sizes[2]))
    model = patch_model(tiny_global.build("sam"), build)
    assert [layout.grid for layout in calls] == [model.patch_embed.grid_size]
    build, calls = counting(swin)
    model = patch_model(tiny_global.build("sam"), build)
    assert len(calls) == len(posenc.patched_encodings(model))


def test_modules_in_another_dtype():
    """What was built for the first site goes where it belongs."""
    model = vit()
    model.blocks[1].double()
    patch_model(model, lambda layout, *sizes: PEG(layout, sizes[2], after=[1]))
    assert model.blocks[1].posenc["custom"].weight.dtype == torch.float64


def test_the_random_state_is_untouched():
    def noisy(layout, num_heads, head_dim, embed_dim):
        encoding = SwinBias(layout, num_heads)
        nn.init.normal_(encoding.table, std=1e-3)
        return encoding

    model = vit()
    before = torch.get_rng_state()
    patch_model(model, noisy)
    assert torch.equal(torch.get_rng_state(), before)


def test_kinds_that_differ():
    kinds = [swin, lambda layout, *sizes: PEG(layout, sizes[2])]
    build, calls = counting(lambda *sizes: kinds[len(calls) > 1](*sizes))
    with pytest.raises(ValueError, match=r"encodings of different kinds, for blocks.1.attn a PEG"):
        patch_model(vit(), build)
