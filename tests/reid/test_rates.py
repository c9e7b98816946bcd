"""Rates by layer, a backbone that waits, warnings where nothing would learn."""

import itertools

import pytest
import tiny_reid
import torch
from model.network import build_network, parameter_groups
from training import run as training
from training.rates import backbone_parameters, decay_by_layer, is_frozen, warn_of_idle_weights

import posenc


def rates(network, config):
    """Name -> learning rate."""
    groups = decay_by_layer(parameter_groups(network, config), network, config.layer_decay)
    names = {id(p): name for name, p in network.named_parameters()}
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}, groups


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_rates_by_layer(pool):
    config = tiny_reid.config(layer_decay=0.5, encoding="learned+irpe", pool=pool)
    network = build_network(config, 8)
    found, groups = rates(network, config)
    plain, _ = rates(network, tiny_reid.config(encoding="learned+irpe", pool=pool))
    scale = {name: found[name] / plain[name] for name in plain}
    assert found.keys() == plain.keys()
    assert scale["vit.patch_embed.proj.weight"] == scale["vit.cls_token"] == 0.125
    assert {s for n, s in scale.items() if "blocks.0" in n and "posenc" not in n} == {0.25}
    assert {s for n, s in scale.items() if "blocks.1" in n and "posenc" not in n} == {0.5}
    assert {s for n, s in scale.items() if "posenc" in n} == {1.0}  # new: they start at zero
    assert scale["neck.weight"] == scale["classifier.weight"] == 1
    together = [id(p) for group in groups for p in group["params"]]
    assert len(together) == len(set(together))


def test_decay_of_weights_stays():
    config = tiny_reid.config(layer_decay=0.5)
    network = build_network(config, 8)
    before = parameter_groups(network, config)
    decays = {id(p): group["weight_decay"] for group in before for p in group["params"]}
    for group in decay_by_layer(before, network, 0.5):
        assert {decays[id(p)] for p in group["params"]} == {group["weight_decay"]}
    assert decay_by_layer(before, network, 1.0) is before


def test_a_model_without_layers():
    network = build_network(tiny_reid.config(encoding="none"), 8)
    network.vit = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"Identity does not tell its layers; use a layer_decay"):
        decay_by_layer([], network, 0.5)


@pytest.mark.parametrize("encoding", ["learned+irpe", "none"])
def test_a_backbone_that_waits(data, tmp_path, encoding):
    """Nothing of it moves in the first epoch, everything in the second."""
    config = tiny_reid.config(freeze=1, encoding=encoding, evaluate_every=9)
    run = training.Run(config, data, tmp_path, quiet=True)
    states = [{n: p.detach().clone() for n, p in run.network.named_parameters()}]
    for epoch in range(2):
        run.one_epoch(epoch, bar=training.tqdm(disable=True))
        states.append({n: p.detach().clone() for n, p in run.network.named_parameters()})
    moved = [
        {name for name in after if not torch.equal(after[name], before[name])}
        for before, after in itertools.pairwise(states)
    ]
    own = {id(p) for p in backbone_parameters(run.network.vit)}
    backbone = {n for n, p in run.network.named_parameters() if id(p) in own}
    rest = {n for n, p in run.network.named_parameters() if p.requires_grad} - backbone
    assert moved[0] == rest >= {"neck.weight", "classifier.weight"}
    assert any("irpe" in name for name in rest) == (encoding != "none")
    assert moved[1] > rest
    assert backbone - moved[1] <= {"vit.pos_embed"}
    assert not run.network.neck.bias.requires_grad


def test_which_epochs():
    assert [is_frozen(tiny_reid.config(freeze=2), epoch) for epoch in range(4)] == [1, 1, 0, 0]
    assert is_frozen(tiny_reid.config(freeze=-1), 1000)
    assert not is_frozen(tiny_reid.config(), 0)


def test_random_weights_that_stay():
    for freeze in (-1, 3):
        with pytest.warns(UserWarning, match=r"frozen in all 3 epochs, with random weights: begin"):
            warn_of_idle_weights(tiny_reid.config(freeze=freeze))
    warn_of_idle_weights(tiny_reid.config(freeze=2))
    warn_of_idle_weights(tiny_reid.config(freeze=-1, weights="vit.pth"))


def test_the_table_of_the_model_waits_too():
    config = tiny_reid.config(vit_args='{"patch_size": 8, "embed_dim": 24, "depth": 1}')
    network = build_network(config, 8)
    own = {id(p) for p in backbone_parameters(network.vit)}
    assert id(network.vit.pos_embed) in own
    assert not own & {id(p) for _, p in posenc.encoding_parameters(network.vit)}
