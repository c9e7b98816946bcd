"""Checkpoints that the command loads into models of timm, and those that it refuses."""

import argparse
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import posenc
from posenc.cli.models import load_checkpoint

NAME = "vit_tiny_patch16_224"
FILE = Path("model.pth")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def vit(**options):
    """Two blocks deep, all weights random."""
    model = timm.create_model(NAME, **{"img_size": (64, 96), "depth": 2, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model


def load(model, path=FILE, encodings=True):
    load_checkpoint(model, NAME, path, encodings=encodings)
    return model


def assert_same(model, other):
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(images), other.forward_features(images), rtol=0, atol=0
        )


def test_of_pytorch_of_training_and_of_safetensors():
    model = vit()
    torch.save(model.state_dict(), FILE)
    assert_same(load(vit()), model)
    wrapped = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3, "args": argparse.Namespace(lr=1)}, FILE)
    assert_same(load(vit()), model)
    save_file(model.state_dict(), "model.safetensors")
    assert_same(load(vit(), Path("model.safetensors")), model)


@pytest.mark.parametrize("classes", [0, 751])
def test_the_classifier_does_not_matter(classes):
    model = vit(num_classes=classes)
    torch.save(model.state_dict(), FILE)
    assert_same(load(vit()), model)


def test_the_table_of_another_size_is_resampled():
    model = vit(img_size=(96, 96))
    torch.save(model.state_dict(), FILE)
    loaded = load(vit())
    assert loaded.pos_embed.shape == (1, 25, 192)
    assert torch.equal(loaded.pos_embed[:, :1], model.pos_embed[:, :1])
    assert torch.equal(loaded.blocks[1].mlp.fc2.weight, model.blocks[1].mlp.fc2.weight)


def test_of_patched_models():
    model = posenc.patch_model(vit(), "swin")
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.normal_()
    torch.save(model.state_dict(), FILE)
    assert_same(load(posenc.patch_model(vit(), "swin")), model)
    fresh = load(posenc.patch_model(vit(), "swin"), encodings=False)
    assert not any(p.any() for _, p in posenc.encoding_parameters(fresh))
    assert_same(fresh, posenc.unpatch_model(model))
    with pytest.raises(ValueError, match=r"swin\.table is missing in the model; name its encoding"):
        load(vit())


def test_a_plain_one_fits_a_patched_model():
    model = vit()
    torch.save(model.state_dict(), FILE)
    assert_same(load(posenc.patch_model(vit(), "swin")), model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": (96, 80)}, r"pos_embed is \[1, 31, 192\] in the file"),
        ({"depth": 1}, r"blocks\.1\.norm1\.weight is missing in the file"),
        ({"depth": 3}, r"blocks\.2\.norm1\.weight is missing in the model"),
        ({"embed_dim": 96}, r"cls_token is \[1, 1, 96\] in the file and \[1, 1, 192\] in the"),
    ],
)
def test_of_another_model(options, words):
    torch.save(vit(**options).state_dict(), FILE)
    model = vit()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"model\.pth is not a checkpoint of {NAME}: {words}"):
        load(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps([1]), b"\x80"])
def test_no_checkpoint(content):
    FILE.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth is no checkpoint that can be read: [^\n]+$"):
        load(vit())


def test_no_code_of_the_file_runs():
    torch.save({"state_dict": {}, "x": Harmful()}, FILE)
    with pytest.raises(ValueError, match=r"model\.pth is no checkpoint that can be read"):
        load(vit())
    assert not Path("harmed").exists()
