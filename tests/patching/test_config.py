"""A config is what a patch was; a patch from it is the same patch."""

import copy
import json

import oracles
import pytest
import torch
from tiny_vit import images, snapshot, vit

import posenc

CASES = {
    "irpe": {"encoding": "irpe", "on": "qk", "method": "cross"},
    "three": {"encoding": "peg+irpe+learned", "irpe": {"on": "kv"}, "after": (1,)},
    "shared": {"encoding": "peg+swin", "share": True},
    "blocks": {"encoding": "swin", "blocks": [1]},
    "hidden": {"encoding": "learned", "absolute": "hide"},
    "backend": {"encoding": "human_part", "backend": "reference"},
    "class": {"encoding": posenc.IRPE},
}


def config_of(**options):
    return posenc.encoding_config(posenc.patch_model(vit(), **options))


@pytest.mark.parametrize("case", CASES)
def test_round_trip_through_json(case):
    source = posenc.patch_model(vit(), **CASES[case])
    config = json.loads(json.dumps(posenc.encoding_config(source)))
    kept, target = copy.deepcopy(config), vit()
    assert posenc.patch_from_config(target, config) is target
    assert posenc.encoding_config(target) == config == kept
    assert list(target.state_dict()) == list(source.state_dict())
    for one, other in zip(source.parameters(), target.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
    for index, encoding in enumerate(posenc.patched_encodings(source).values()):
        oracles.randomize(encoding, index)
    target.load_state_dict(source.state_dict())
    x = images(source)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))
    posenc.unpatch_model(target)
    assert list(target.state_dict()) == list(vit().state_dict())


def test_the_encodings_are_fresh():
    source = posenc.patch_model(vit(), "swin")
    for encoding in posenc.patched_encodings(source).values():
        oracles.randomize(encoding)
    target = posenc.patch_from_config(vit(), posenc.encoding_config(source))
    assert all(not parameter.any() for _, parameter in posenc.encoding_parameters(target))


def test_a_given_layout():
    def build():
        model = vit()
        model.patch_embed.grid_size = None
        return model

    source = posenc.patch_model(build(), "swin", layout=posenc.TokenLayout(5, 3, 1))
    config = posenc.encoding_config(source)
    assert config["layout_given"]
    assert posenc.encoding_config(posenc.patch_from_config(build(), config)) == config


def test_it_warns_as_patch_model_does():
    with pytest.warns(UserWarning, match="Quadratic has an effect from the start"):
        config = config_of(encoding="quadratic")
    with pytest.warns(UserWarning, match="Quadratic has an effect from the start") as caught:
        posenc.patch_from_config(vit(), config)
    assert caught[0].filename == __file__


MISFITS = {
    "layout": ({"img_size": (20, 12)}, "the config does not fit .* layout: .*: 3, .* model: .*: 5"),
    "prefix": ({"prefix": 5}, "layout: .*'prefix': 1.*'prefix': 5"),
    "depth": ({"depth": 3}, "depth: 2; of the model: 3"),
    "width": ({"embed_dim": 32}, "width: 16; of the model: 32"),
    "heads": ({"num_heads": 4}, r"heads of blocks.0.attn: \[2, 8\]; of the model: \[4, 4\]"),
    "patch": ({"img_size": (24, 40), "patch_size": 8}, r"\[4, 4\]; of the model: \[8, 8\]"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_another_kind_of_model(case):
    options, message = MISFITS[case]
    model = vit(**options)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        posenc.patch_from_config(model, config_of(encoding="swin"))
    assert snapshot(model) == before


DAMAGED = {
    "text": (
        lambda config: json.dumps(config),
        TypeError,
        "config must be the dictionary .* got str",
    ),
    "none": (lambda config: None, TypeError, "config must be the dictionary .* got NoneType"),
    "format": (
        lambda config: {**config, "format": 9},
        ValueError,
        "the config has format 9.*upgrade",
    ),
    "nothing": (lambda config: {}, ValueError, "the config was not written by .* no format number"),
    "null": (lambda config: {**config, "encodings": None}, ValueError, "encodings must be a list"),
    "option": (
        lambda config: {**config, "encodings": [{"name": "swin", "options": {}}]},
        ValueError,
        "the config: swin lacks options: init, prefix_pairs",
    ),
    "no value": (lambda config: {**config, "share": {1}}, ValueError, "is no JSON value"),
    "not finite": (
        lambda config: {**config, "width": float("inf")},
        ValueError,
        "is no JSON value",
    ),
    "a site more": (
        lambda config: {**config, "sites": [*config["sites"], "blocks.9.attn"]},
        ValueError,
        r"sites: \['blocks.0.attn', 'blocks.1.attn', 'blocks.9.attn'\]; of the model: \['blocks.0",
    ),
    "a head more": (
        lambda config: {**config, "heads": {**config["heads"], "blocks.9.attn": [2, 8]}},
        ValueError,
        r"heads of blocks.9.attn: \[2, 8\]; of the model: none",
    ),
    "wrong option": (
        lambda config: {
            **config,
            "encodings": [{"name": "swin", "options": {"prefix_pairs": "x", "init": "zero"}}],
        },
        ValueError,
        "prefix_pairs must be one of",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_config(case):
    change, error, message = DAMAGED[case]
    config, model = config_of(encoding="swin"), vit()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        posenc.patch_from_config(model, change(config))
    assert snapshot(model) == before


def test_a_patched_model_and_no_model():
    config = config_of(encoding="swin")
    with pytest.raises(ValueError, match=r"already patched with irpe; call posenc.unpatch_model"):
        posenc.patch_from_config(posenc.patch_model(vit(), "irpe"), config)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got str"):
        posenc.patch_from_config("vit", config)
