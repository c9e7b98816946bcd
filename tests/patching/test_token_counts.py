"""Layouts that are given, and tokens that do not fit them."""

import pytest
import torch
from patch_cases import expected_logits, without_grid_size
from random_encodings import SILENT, randomize_encodings
from tiny_vit import images, snapshot, vit

import posenc
from posenc import TokenLayout, patch_model


def test_dropped_tokens():
    model = patch_model(vit(patch_drop_rate=0.4)).train()
    with pytest.raises(
        RuntimeError, match=r"blocks.0.attn got 10 tokens, but its layout 3x5 \+ 1 prefix has 16"
    ):
        model(images(model))
    assert model.eval()(images(model)).shape == (2, 5)


@pytest.mark.parametrize(
    "layout", [TokenLayout(3, 4, 1), TokenLayout(5, 3, 1), TokenLayout(3, 5, 0)]
)
def test_a_layout_that_contradicts_the_model(layout):
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"layout=\d.* contradicts .* gives 3x5 \+ 1 prefix"):
        patch_model(model, layout=layout)
    assert snapshot(model) == before
    patch_model(model, layout=TokenLayout(3, 5, 1))


def test_an_embedding_without_grid_needs_the_layout():
    model = without_grid_size()
    with pytest.raises(ValueError, match=r"OwnEmbedding has no grid_size.* pass\s+layout=posenc"):
        patch_model(model)
    assert "has no grid_size" in str(posenc.supports(model))
    patch_model(model, "swin", layout=TokenLayout(5, 3, 1))  # an equal count, another grid
    randomize_encodings(model)
    x = images(model)
    expected = expected_logits(model, "swin", (5, 3, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["irpe", "peg", "learned", "swin"])
@pytest.mark.parametrize("layout", [TokenLayout(3, 4, 1), TokenLayout(3, 5, 0)])
def test_a_layout_that_does_not_fit_the_tokens(name, layout):
    model = patch_model(without_grid_size(), name, layout=layout)
    count = layout.num_tokens
    with pytest.raises(
        RuntimeError, match=rf"got 16 tokens, but its layout {layout.height}x.* {count}"
    ):
        model(images(model))


@pytest.mark.parametrize("names", ["irpe", "swin", "human_part", "peg", "learned", "sinusoidal"])
def test_set_input_size_is_followed(names):
    """Tables that depend on the grid are resampled; the stored ones stay."""
    model = randomize_encodings(patch_model(vit(), names, **SILENT[names]))
    stored = {key: value.clone() for key, value in posenc.encoding_state_dict(model).items()}
    small = model(images(model))
    model.set_input_size(img_size=(20, 12))
    assert model(images(model)).isfinite().all()
    assert posenc.summary(model).layout == TokenLayout(5, 3, 1)
    model.set_input_size(img_size=(12, 20))
    for key, value in posenc.encoding_state_dict(model).items():
        assert torch.equal(value, stored[key])
    assert small.isfinite().all()
