"""Which position sources of a model itself are reported."""

import torch
from tiny_vit import vit
from torch import nn

from posenc import patch_model, summary
from posenc.patching.own_positions import own_positions


def test_a_place_holder_is_no_source():
    model = vit()
    model.rope = nn.Identity()
    model.blocks[0].attn.rel_pos = nn.Identity()
    assert own_positions(model) == ("absolute table pos_embed",)
    assert summary(patch_model(model, "irpe")).own_positions == ("absolute table pos_embed",)


def test_what_is_one_is_named_and_counted():
    model = vit()
    model.rope = nn.Linear(2, 2)
    for block in model.blocks:
        block.attn.rel_pos_h = nn.Parameter(torch.zeros(3))
    assert own_positions(model, hidden="pos_embed") == (
        "absolute table pos_embed, hidden",
        "relative bias rel_pos_h in 2 modules",
        "rotary embedding rope",
    )
