"""The model that `look` and other commands are about: which weights, which encodings."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import posenc
from posenc.cli import parser
from posenc.cli.models import load_weights
from posenc.cli.subject import Subject, capture

NAME = "vit_tiny_patch16_224"
SIZE = [64, 96]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def vit(img_size=(64, 96)):
    """All weights random."""
    model = timm.create_model(NAME, img_size=img_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model


def assert_same(model, other):
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model(images), other(images), rtol=0, atol=0)


def save_npz(model, path="model.npz", depth=12):
    """As the JAX code of the ViT paper names and turns weights."""
    rows = {
        "embedding/kernel": model.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "embedding/bias": model.patch_embed.proj.bias,
        "cls": model.cls_token,
        "Transformer/posembed_input/pos_embedding": model.pos_embed,
        "Transformer/encoder_norm/scale": model.norm.weight,
        "Transformer/encoder_norm/bias": model.norm.bias,
        "head/kernel": model.head.weight.T,
        "head/bias": model.head.bias,
    }
    for number, block in enumerate(model.blocks[:depth]):
        at = f"Transformer/encoderblock_{number}/"
        attention = at + "MultiHeadDotProductAttention_1/"
        kernels, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            rows[f"{attention}{name}/kernel"] = kernel.T.unflatten(1, (3, 64))
            rows[f"{attention}{name}/bias"] = bias.unflatten(0, (3, 64))
        rows[f"{attention}out/kernel"] = block.attn.proj.weight.T.unflatten(0, (3, 64))
        rows[f"{attention}out/bias"] = block.attn.proj.bias
        for name, norm in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            rows |= {f"{at}{name}/scale": norm.weight, f"{at}{name}/bias": norm.bias}
        for name, layer in (("Dense_0", block.mlp.fc1), ("Dense_1", block.mlp.fc2)):
            rows[f"{at}MlpBlock_3/{name}/kernel"] = layer.weight.T
            rows[f"{at}MlpBlock_3/{name}/bias"] = layer.bias
    np.savez(path, **{key: value.detach().numpy() for key, value in rows.items()})


def test_arguments_make_it():
    given = "look x.png --model N --img-size 8 9 --checkpoint c --encoding e --device d --seed 7"
    seen = Subject.of(parser().parse_args(given.split()))
    assert seen == Subject("N", [8, 9], checkpoint=Path("c"), encoding="e", device="d", seed=7)


def test_weights_of_a_file_and_of_jax():
    model = vit()
    torch.save(model.state_dict(), "model.pth")
    save_npz(model)
    for file in ("model.pth", "model.npz"):
        assert_same(Subject(NAME, SIZE, weights=Path(file)).build(), model)


def test_weights_are_there_before_the_patch():
    """An encoding that starts from the model's own table starts from the one of the file."""
    torch.save(vit().state_dict(), "model.pth")
    for name in ("swin", "learned"):
        expected = posenc.patch_model(Subject(NAME, SIZE, weights=Path("model.pth")).build(), name)
        patched = Subject(NAME, SIZE, weights=Path("model.pth"), encoding=name).build()
        assert_same(patched, expected)


def test_weights_hold_no_encodings():
    model = posenc.patch_model(vit(), "swin")
    torch.save(model.state_dict(), "model.pth")
    for encoding in (None, "swin"):
        seen = Subject(NAME, SIZE, weights=Path("model.pth"), encoding=encoding)
        with pytest.raises(ValueError, match=r"swin\.table is missing in the model; --checkpoint"):
            seen.build()
    assert_same(Subject(NAME, SIZE, checkpoint=Path("model.pth"), encoding="swin").build(), model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (NAME, "is not a file of vit_tiny_patch16_224: .*encoderblock_11"),
        ("vit_small_patch16_224", "is not a file of vit_small_patch16_224: .*192"),
        ("vit_wee_patch16_reg1_gap_256", "is not a file of vit_wee_patch16_reg1_gap_256: "),
        ("swin_tiny_patch4_window7_224", "timm reads no .npz for swin_tiny_patch4_window7_224"),
    ],
)
def test_weights_of_another_model(name, message):
    save_npz(vit((224, 224)), depth=11)
    with pytest.raises(ValueError, match=rf"^model\.npz:? {message}"):
        Subject(name, weights=Path("model.npz")).build()


def test_weights_that_lack_something():
    model = timm.create_model(NAME, init_values=1e-5)
    save_npz(vit((224, 224)))
    with pytest.raises(
        ValueError, match=r"model\.npz is not a .*: blocks\.0\.ls1\.gamma is missing"
    ):
        load_weights(model, NAME, Path("model.npz"))


def test_words_say_which_weights():
    assert Subject(NAME, seed=3).words == "random weights (seed 3)"
    assert Subject(NAME, pretrained=True, encoding="irpe").words == (
        "pretrained weights augreg_in21k_ft_in1k, encoding irpe as it starts"
    )
    assert Subject(f"{NAME}.augreg_in21k", pretrained=True).words == "pretrained weights"
    file = Path("folder/x.pth")
    assert Subject(NAME, weights=file, encoding="irpe").words == (
        "weights of x.pth, encoding irpe as it starts"
    )
    assert (
        Subject(NAME, checkpoint=file, encoding="irpe").words == "weights of x.pth, encoding irpe"
    )
    assert Subject(NAME, checkpoint=file, encodings=Path("e")).words == (
        "weights of x.pth, encodings of e"
    )


def test_images_of_another_size():
    model = Subject(NAME, SIZE).build()
    assert capture(model, torch.zeros(2, 3, *SIZE)).attention["blocks.3.attn"].shape[0] == 2
    with pytest.raises(ValueError, match=r"the model refuses the image: .*96"):
        capture(model, torch.zeros(2, 3, 96, 64))
