"""timm's flags of fused attention, of a site and of all."""

import pytest
import torch
from patch_cases import expected_logits
from random_encodings import randomize_encodings
from timm.layers import set_fused_attn
from tiny_vit import images, snapshot, vit

import posenc
from posenc import patch_model, patched_encodings


def test_a_site_with_its_flag_off_is_switched_on():
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    randomize_encodings(patch_model(model, "swin"))
    x = images(model)
    expected = expected_logits(model, "swin", (3, 5, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def fused_attention_off():
    from timm.layers import use_fused_attn

    before = use_fused_attn()
    set_fused_attn(False)
    yield
    set_fused_attn(before)


def test_the_global_flag_is_off(fused_attention_off):
    model = vit()
    assert model.blocks[0].attn.fused_attn is False
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"switched off globally .* call\s+timm.layers.set_fused_"):
        patch_model(model, "peg+irpe")
    assert snapshot(model) == before
    report = posenc.supports(model)
    assert not report
    assert "switched off globally" in str(report)
    patch_model(model, "peg")
    assert set(patched_encodings(model)) == {"blocks.0.peg"}


def test_the_global_flag_after_patching_changes_nothing(fused_attention_off):
    set_fused_attn(True)
    model = patch_model(vit())
    expected = model(images(model))
    set_fused_attn(False)
    assert torch.equal(model(images(model)), expected)
