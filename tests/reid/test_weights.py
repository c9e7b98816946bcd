"""Pretrained weights that do not fit, or cannot be had, are said so at once."""

import json
import time

import pytest
import timm
import torch
from huggingface_hub import constants
from model.network import build_network
from training.config import Config

VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2}
OTHER = {
    "deeper": ({**VIT, "depth": 3}, r"blocks\.2\.\S+ is missing in the model"),
    "shallower": ({**VIT, "depth": 1}, r"blocks\.1\.\S+ is missing in the file"),
    "narrower": ({**VIT, "embed_dim": 12}, r"is \[.*12\] in the file and \[.*24\] in the model"),
}


def config(**changes):
    numbers = {"vit_args": json.dumps(VIT), "pool": "token", "height": 32, "width": 16}
    return Config(**{**numbers, **changes})


@pytest.mark.parametrize("other", OTHER)
def test_weights_of_another_model(other, tmp_path):
    options, rule = OTHER[other]
    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("vit_tiny_patch16_224", **options).state_dict(), path)
    with pytest.raises(
        ValueError, match=rf"vit.pth is not a checkpoint of vit_tiny.*{rule}.*\(--w"
    ):
        build_network(config(weights=str(path)), 4)


@pytest.mark.parametrize("content", [{"a": torch.zeros(2)}, {}, b"nothing"])
def test_files_that_hold_no_model(content, tmp_path):
    path = tmp_path / "vit.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"vit\.pth is (not a checkpoint|no checkpoint that can)"):
        build_network(config(weights=str(path)), 4)


def test_the_norm_after_the_mean(tmp_path):
    """Pretrained models have theirs before it."""
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    torch.nn.init.normal_(model.norm.weight)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    changes = {"weights": str(tmp_path / "vit.pth"), "pool": "avg"}
    with pytest.raises(ValueError, match=r'fc_norm.* with --pool avg, the option "fc_norm": false'):
        build_network(config(**changes), 4)
    own = build_network(config(**changes, vit_args=json.dumps({**VIT, "fc_norm": False})), 4).vit
    assert torch.equal(own.norm.weight, model.norm.weight)


def test_a_hub_that_does_not_answer(monkeypatch, tmp_path):
    """Within seconds, not after its retries."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    before, started = constants.HF_HUB_OFFLINE, time.perf_counter()
    with pytest.raises(ValueError, match=r"of vit_tiny.* cannot be loaded; --weights FILE takes"):
        build_network(config(pretrained=True, vit_args="{}"), 4)
    assert time.perf_counter() - started < 10
    assert before == constants.HF_HUB_OFFLINE


def test_a_model_without_pretrained_weights():
    name = "vit_base_patch32_plus_256"
    rule = rf"of {name} cannot be loaded.*No pretrained weights exist"
    with pytest.raises(ValueError, match=rule):
        build_network(config(vit=name, height=64, width=32, pretrained=True), 4)
