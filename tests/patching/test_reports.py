"""Summary, what a model supports, the configuration."""

import pytest
import torch
from patch_cases import OwnAttention, custom, expected_logits
from random_encodings import randomize_encodings
from timm.models.vision_transformer import Block
from tiny_vit import images, snapshot, vit
from torch import nn

import posenc
from posenc import TokenLayout, patch_model


def test_summary():
    model = patch_model(vit(5, depth=3), "peg+irpe+learned", absolute="hide")
    summary = posenc.summary(model)
    assert summary.layout == TokenLayout(3, 5, 5)
    assert summary.sites == {
        "blocks.0": ("peg",),
        **{f"blocks.{i}.attn": ("irpe",) for i in range(3)},
        "VisionTransformer": ("learned",),
    }
    assert summary.new_parameters == 3 * 8 * 50 + 16 * 10 + 20 * 16
    assert not any(summary.at_start.values())
    assert summary.own_positions == ("absolute table pos_embed, hidden",)
    lines = str(summary).splitlines()
    assert lines[0] == "layout:         3x5 + 5 prefix = 20 tokens"
    assert "sites:          blocks.0.attn ... blocks.2.attn (3) <- irpe" in lines
    assert "new parameters: 1,680" in lines
    assert "backend:        inference sdpa, training reference" in lines
    assert any("irpe: IRPE(mode=contextual" in line for line in lines)
    assert not any(line.startswith("warning") for line in lines)


def test_summary_of_changes_and_doubled_positions():
    with pytest.warns(UserWarning, match="Sinusoidal has an effect"):
        model = patch_model(vit(), "sinusoidal")
    text = str(posenc.summary(model))
    assert "[changes the model at start]" in text
    assert "warning:        sinusoidal on top of the model's own absolute table" in text
    assert "own positions:  absolute table pos_embed\n" in text
    assert "not used (no encoding acts inside attention)" in text


def test_summary_needs_a_patched_model():
    with pytest.raises(ValueError, match=r"is not patched; call posenc.patch_model"):
        posenc.summary(vit())


def test_summary_changes_nothing():
    model = randomize_encodings(patch_model(vit(), "irpe+swin")).train()
    before = snapshot(model)
    rng = torch.get_rng_state()
    posenc.summary(model)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), rng)


def test_supports():
    model = vit(depth=3)
    before = snapshot(model)
    report = posenc.supports(model)
    assert report
    assert (report.layout, report.reason, report.refused) == (TokenLayout(3, 5, 1), "", {})
    assert report.sites == tuple(f"blocks.{i}.attn" for i in range(3))
    assert str(report) == (
        "supported: yes\nlayout:    3x5 + 1 prefix\nsites:     blocks.0.attn ... blocks.2.attn (3)"
    )
    assert snapshot(model) == before


def test_supports_tells_why_not():
    assert "found no model that posenc knows in Linear" in str(posenc.supports(nn.Linear(2, 2)))
    assert "already patched" in str(posenc.supports(patch_model(vit())))
    model = vit()
    model.blocks[1] = vit(attn_layer=OwnAttention).blocks[1]
    report = posenc.supports(model)
    assert not report
    assert report.sites == ("blocks.0.attn",)
    assert (
        "refused:   blocks.1.attn: OwnAttention: its forward delegates to its parent class (super)"
        in str(report)
    )
    with pytest.raises(ValueError, match=r"blocks.1.attn cannot be patched"):
        patch_model(model)


def test_sites_inside_a_block_subclass():
    class MyBlock(Block):
        pass

    model = randomize_encodings(patch_model(vit(block_fn=MyBlock), "peg+irpe"))
    x = images(model)
    expected = expected_logits(model, "peg+irpe", (3, 5, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_the_config_is_plain_data():
    model = patch_model(vit(), "peg+irpe", irpe={"mode": "bias"}, after=(1,), blocks=[0])
    assert posenc.encoding_config(model) == {
        "format": 1,
        "model": None,
        "encodings": [
            {"name": "peg", "options": {"kernel_size": 3, "after": [1], "init": "zero"}},
            {
                "name": "irpe",
                "options": {
                    "mode": "bias",
                    "method": "product",
                    "on": "k",
                    "share_heads": True,
                    "ratio": 1.9,
                    "prefix_pairs": "shared",
                    "init": "zero",
                },
            },
        ],
        "layout": {"height": 3, "width": 5, "prefix": 1},
        "layout_given": False,
        "depth": 2,
        "blocks": ["blocks.0", "blocks.1"],
        "width": 16,
        "windows": {},
        "heads": {"blocks.0.attn": [2, 8]},
        "patch_size": [4, 4],
        "sites": ["blocks.0.attn"],
        "share": False,
        "absolute": "keep",
        "backend": "auto",
    }
    with pytest.raises(ValueError, match=r"'custom' is not registered.* posenc.register_encoding"):
        posenc.encoding_config(patch_model(vit(), custom))
