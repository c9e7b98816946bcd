"""Models that contain the transformer, or two of them."""

import pytest
import torch
from tiny_vit import images, snapshot, vit
from torch import nn

import posenc
from posenc import SwinBias, patch_model, patched_encodings, unpatch_model


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.neck = nn.Linear(5, 3).double()
        self.backbone = vit()

    def forward(self, x):
        return self.neck(self.backbone(x))


@pytest.mark.parametrize("share", [False, True])
def test_a_wrapper_that_contains_a_vit(share):
    model = Wrapper()
    x = images(model.backbone)
    expected, before = model(x), snapshot(model)
    patch_model(model, "peg+swin+learned", share=share)
    assert posenc.is_patched(model)
    assert posenc.is_patched(model.backbone)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    names = [name for name, _ in posenc.encoding_parameters(model)]
    assert len(names) == (4 if share else 5)
    assert all(name.startswith("backbone.") for name in names)
    assert set(names) < set(model.state_dict())
    assert set(names) == set(posenc.encoding_state_dict(model))
    assert "learned" in patched_encodings(model)
    assert "sites:          VisionTransformer <- learned" in str(posenc.summary(model))
    with pytest.raises(ValueError, match="already patched"):
        patch_model(model)
    unpatch_model(model)
    assert snapshot(model) == before
    assert torch.equal(model(x), expected)


def test_two_vits_can_be_patched_one_by_one():
    pair = nn.ModuleDict({"a": vit(), "b": vit()})
    patch_model(pair["a"], "irpe")
    patch_model(pair["b"], "swin")
    assert {type(e) for e in patched_encodings(pair["b"]).values()} == {SwinBias}
    unpatch_model(pair["a"])
    assert posenc.is_patched(pair["b"])
    assert not posenc.is_patched(pair["a"])
