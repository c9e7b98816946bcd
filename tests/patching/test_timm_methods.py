"""timm's methods of a patched model."""

import copy
import pickle

import oracles
import pytest
import torch
from patched_vit import CASES, assert_same, created, each_case, encoding_names, patched, some_cases
from random_encodings import randomize_encodings
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer
from tiny_vit import images, vit

import posenc
from posenc import patch_model, unpatch_model


@some_cases
def test_flag_of_checkpointing_survives(case):
    model = vit()
    model.set_grad_checkpointing()
    patched(case, model)
    assert model.grad_checkpointing
    unpatch_model(model)
    assert model.grad_checkpointing
    patched(case, model).set_grad_checkpointing(False)
    assert not unpatch_model(model).grad_checkpointing


@some_cases
def test_reset_classifier(case, tmp_path):
    model = patched(case)
    x = images(model)
    features = model.forward_features(x)
    names, config = encoding_names(model), posenc.encoding_config(model)
    model.reset_classifier(7, global_pool="avg")
    assert model(x).shape == (2, 7)
    assert torch.equal(model.forward_features(x), features)
    assert (encoding_names(model), posenc.encoding_config(model)) == (names, config)
    posenc.save_encodings(model, tmp_path / "encodings.safetensors")
    other = posenc.load_encodings(vit(), tmp_path / "encodings.safetensors")
    assert torch.equal(other.forward_features(x), features)
    head = model.head
    assert unpatch_model(model).head is head
    assert model(x).shape == (2, 7)


def block_outputs(model, x):
    """What each block returns in the usual forward."""
    outputs = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for block in model.blocks
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return outputs


def as_maps(tokens):
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 5))


@each_case
def test_forward_intermediates(case):
    model = patched(case)
    x = images(model)
    expected = block_outputs(model, x)
    final, intermediates = model.forward_intermediates(x)
    assert len(intermediates) == len(expected) == 2
    assert all(
        torch.equal(got, as_maps(tokens))
        for got, tokens in zip(intermediates, expected, strict=True)
    )
    assert torch.equal(final, model.forward_features(x))
    (first,) = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert torch.equal(first, intermediates[0])


@each_case
def test_a_feature_extractor_around_a_patched_model(case):
    model = patched(case, vit(depth=3))
    model.feature_info = [
        {"module": f"blocks.{index}", "num_chs": 16, "reduction": 4} for index in range(3)
    ]
    twin = copy.deepcopy(model)
    x = images(model)
    net = FeatureGetterNet(model, out_indices=[0, 1])
    assert len(model.blocks) == 2
    expected = [as_maps(tokens) for tokens in block_outputs(twin, x)[:2]]
    assert all(torch.equal(a, b) for a, b in zip(net(x), expected, strict=True))
    assert all(name.startswith("model.") for name in encoding_names(net))
    clone = pickle.loads(pickle.dumps(net))
    assert all(torch.equal(a, b) for a, b in zip(clone(x), expected, strict=True))
    unpatch_model(net)
    assert not posenc.is_patched(net)
    assert type(model) is VisionTransformer
    plain = FeatureGetterNet(unpatch_model(twin), out_indices=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(net(x), plain(x), strict=True))


@some_cases
def test_a_feature_extractor_of_timm_can_be_patched(case):
    net = created(features_only=True, out_indices=[0, 1]).double()
    oracles.randomize(net, 2, scale=0.1)
    x = images(net.model)
    before = net(x)
    assert patch_model(net, **CASES[case]) is net
    for got, expected in zip(net(x), before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    randomize_encodings(net)
    assert not torch.allclose(net(x)[1], before[1], rtol=1e-3)
    expected = [as_maps(tokens) for tokens in block_outputs(net.model, x)]
    assert all(torch.equal(a, b) for a, b in zip(net(x), expected, strict=True))
    unpatch_model(net)
    assert all(torch.equal(a, b) for a, b in zip(net(x), before, strict=True))


@pytest.mark.parametrize(
    "build", [vit, lambda: patched("swin", seed=9)], ids=["unpatched", "patched"]
)
def test_encodings_of_a_pruned_model_load_into_one_like_it(build, tmp_path):
    source = patched("swin", vit(depth=3))
    source.prune_intermediate_layers([1], prune_norm=False)
    posenc.save_encodings(source, tmp_path / "encodings.safetensors")
    target = posenc.load_encodings(build(), tmp_path / "encodings.safetensors")
    assert_same(posenc.encoding_state_dict(target), posenc.encoding_state_dict(source))


def test_fx_feature_extraction_keeps_sites_as_leaves():
    from timm.layers import create_feature_extractor

    model = patched("irpe+peg")
    x = images(model)
    extractor = create_feature_extractor(model, {"blocks.1": "tokens"})
    with torch.no_grad():
        tokens = model.norm(extractor(x)["tokens"])
        torch.testing.assert_close(tokens, model.forward_features(x), rtol=1e-12, atol=1e-12)
