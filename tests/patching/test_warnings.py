"""When patching warns, and where the warning points to."""

import pytest
import torch
from tiny_vit import images, snapshot, vit

from posenc import patch_model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoding": "quadratic"}, r"Quadratic has an effect from the start \(strength=0"),
        ({"encoding": "sinusoidal"}, "Sinusoidal has an effect from the start"),
        ({"encoding": "human_part", "strength": 1.0}, "HumanPart has an effect from the start"),
        ({"encoding": "swin", "init": "paper"}, "SwinBias has an effect from the start"),
        ({"encoding": "learned", "init": "paper"}, "LearnedAbsolute has an effect"),
        ({"encoding": "peg", "init": "paper"}, "PEG has an effect from the start"),
        ({"encoding": "irpe", "absolute": "hide"}, "the model's position table is hidden$"),
        (
            {"encoding": "quadratic+sinusoidal", "absolute": "hide"},
            "Quadratic has an .*; Sinusoidal has an .*; the model's position table is hidden",
        ),
    ],
)
def test_warns_once_when_outputs_change(arguments, message):
    model = vit()
    expected = model(images(model))
    with pytest.warns(UserWarning, match=f"posenc: the patched model gives.*{message}") as record:
        patch_model(model, **arguments)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert not torch.allclose(model(images(model)), expected, rtol=1e-6)


def test_a_warning_made_an_error_leaves_the_model_untouched():
    model = vit()
    before = snapshot(model)
    with pytest.raises(UserWarning, match="Quadratic has an effect"):
        patch_model(model, "quadratic")
    assert snapshot(model) == before


def test_a_single_patch_is_pointless():
    with pytest.warns(UserWarning, match="the layout 1x1 . 1 prefix has a single patch") as record:
        patch_model(vit(img_size=(4, 4)))
    assert record[0].filename == __file__
