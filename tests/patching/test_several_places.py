"""Models with attention in several places, outside timm."""

import pytest
import torch
from beyond_timm import build
from random_encodings import randomize_encodings
from torch import nn

import posenc
from posenc import TokenLayout, patch_model, patched_encodings


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.text = build("torch"), build("torch")

    def forward(self, images, words):
        return self.visual(images), self.text(words)


def test_a_text_tower_is_not_patched_silently(tmp_path):
    model, layout = TwoTowers(), TokenLayout(3, 5, 1)
    for blocks in (None, [0]):
        with pytest.raises(ValueError, match=r"2 places \(text.layers.<i>.self_attn, visual.*part"):
            patch_model(model, "swin", layout=layout, blocks=blocks)
    assert "2 places" in posenc.supports(model, layout=layout).reason
    patch_model(model, "swin", layout=layout, blocks=lambda name: name.startswith("visual."))
    assert set(patched_encodings(model)) == {f"visual.layers.{i}.self_attn.swin" for i in (0, 1)}
    posenc.save_encodings(model, tmp_path / "selected")
    posenc.unpatch_model(model)
    posenc.load_encodings(model, tmp_path / "selected")
    assert set(patched_encodings(model)) == {f"visual.layers.{i}.self_attn.swin" for i in (0, 1)}
    posenc.unpatch_model(model)

    patch_model(model.visual, "swin", layout=layout)
    posenc.save_encodings(model, tmp_path / "part")
    posenc.unpatch_model(model)
    with pytest.raises(ValueError, match="model: TransformerEncoder; of the model: TwoTowers"):
        posenc.load_encodings(model, tmp_path / "part")
    posenc.load_encodings(model.visual, tmp_path / "part")
    assert posenc.is_patched(model)


def test_stages_are_several_places():
    model = nn.ModuleList([build("torch"), build("torch")])
    with pytest.raises(ValueError, match=r"2 places \(0.layers.<i>.self_attn, 1.layers.<i>"):
        patch_model(model, "swin", layout=TokenLayout(3, 5, 1))


def test_a_whole_clip():
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": (12, 20), "layers": 2, "width": 64, "patch_size": 4}
    text = {"context_length": 16, "vocab_size": 10, "width": 64, "heads": 1, "layers": 2}
    model = open_clip.CLIP(8, vision, text).eval()
    x = torch.randn(2, 3, 12, 20)
    with torch.no_grad():
        expected = model.encode_image(x)
        with pytest.raises(ValueError, match=r"2 places .*visual.transformer.resblocks.<i>.attn"):
            patch_model(model, "swin", layout=TokenLayout(3, 5, 1))
        patch_model(model.visual, "swin", layout=TokenLayout(3, 5, 1))
        torch.testing.assert_close(model.encode_image(x), expected)
        randomize_encodings(model)
        assert (model.encode_image(x) - expected).abs().max() > 1e-4
    assert "positional_embedding" in model.visual.no_weight_decay()
    assert any("posenc" in name for name in model.visual.no_weight_decay())
