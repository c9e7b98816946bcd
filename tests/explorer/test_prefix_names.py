"""Names of the tokens before the patches, of models that have some, other or none."""

import pytest
import timm
import torch
from tiny_vit import vit

import posenc
from posenc.explorer.page import prefix_names

REGISTERS = ["register 1", "register 2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"class_token": True}, ["CLS"]),
        ({"class_token": True, "reg_tokens": 2}, ["CLS", *REGISTERS]),
        ({"class_token": False, "reg_tokens": 2}, REGISTERS),
        ({"class_token": False}, []),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_names_of_timm(options, expected, wrapped):
    model = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, global_pool="avg", **options
    )
    layout = posenc.TokenLayout(2, 2, prefix=len(expected))
    assert prefix_names(torch.nn.Sequential(model) if wrapped else model, layout) == expected


def test_names_of_distillation():
    assert prefix_names(vit(2), posenc.TokenLayout(3, 5, prefix=2)) == ["CLS", "distillation"]


def test_names_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=8,
        patch_size=4,
        num_register_tokens=2,
    )
    model = transformers.Dinov2WithRegistersModel(config)
    assert prefix_names(model, posenc.TokenLayout(2, 2, prefix=3)) == ["CLS", *REGISTERS]


def test_tokens_that_the_model_does_not_account_for_have_numbers():
    numbered = ["prefix 0", "prefix 1", "prefix 2"]
    assert prefix_names(vit(1), posenc.TokenLayout(3, 5, prefix=3)) == numbered
    assert prefix_names(vit(5), posenc.TokenLayout(3, 5, prefix=3)) == numbered
    assert (
        prefix_names(torch.nn.Sequential(vit(1), vit(1)), posenc.TokenLayout(3, 5, prefix=2))
        == (numbered[:2])
    )
