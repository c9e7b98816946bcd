"""What `posenc.fold_biases` refuses, and what it says."""

import pytest
import torch
from random_encodings import randomize_encodings
from tiny_vit import images, snapshot, vit
from torch import nn

import posenc

TRAINED = r"is in train mode.* save them with posenc.save_encodings, call model.eval\(\), then fold"


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["swin", "human_part", "swin+irpe"])
def test_a_model_in_train_mode_keeps_its_tables(name, share, is_inside):
    model = posenc.patch_model(vit(), name, share=share)
    model = (nn.ModuleDict({"vit": model}) if is_inside else model).train()
    before = snapshot(model)
    with pytest.raises(ValueError, match=TRAINED):
        posenc.fold_biases(model)
    assert snapshot(model) == before
    posenc.fold_biases(model.eval())
    assert any("posenc" in key for key, _ in model.named_buffers())


def test_one_encoding_in_train_mode_is_enough():
    model = posenc.patch_model(vit(), "swin").eval()
    posenc.patched_encodings(model)["blocks.1.attn.swin"].train()
    before = snapshot(model)
    with pytest.raises(ValueError, match=TRAINED):
        posenc.fold_biases(model)
    assert snapshot(model) == before


def test_only_the_vision_transformer_must_be_in_eval_mode():
    """A module around it, such as a trainer's, is none of its business."""
    model = nn.ModuleDict({"vit": randomize_encodings(posenc.patch_model(vit(), "swin"))}).train()
    model["vit"].eval()
    x = images(model["vit"])
    with torch.no_grad():
        expected = model["vit"](x)
        posenc.fold_biases(model)
        torch.testing.assert_close(model["vit"](x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("name", "words"),
    [("irpe", "has irpe"), ("peg", "has peg"), ("peg+irpe", "has peg and irpe")],
)
def test_contextual_encodings_alone_hear_what_folding_is_for(name, words, train):
    model = posenc.patch_model(vit(), name).train(train)
    before = snapshot(model)
    message = (
        rf"nothing to fold: .* \(those with is_static, .*\); .*{words}, "
        r"which read queries, keys or tokens.* Compile, export or save it as it is"
    )
    with pytest.raises(ValueError, match=message):
        posenc.fold_biases(model)
    assert snapshot(model) == before


def test_folding_twice():
    model = posenc.fold_biases(posenc.patch_model(vit(), "swin+irpe"))
    with pytest.raises(ValueError, match="the biases of the model are folded already"):
        posenc.fold_biases(model)
