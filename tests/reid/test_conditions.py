"""Queries that are shifted, partial, occluded; crops on a taller grid."""

import pytest
import tiny_reid
import torch
from experiment import CONTENDERS, configured
from findings.conditions import (
    CONDITIONS,
    QUERIES,
    as_they_are,
    occluded,
    partial,
    score_all,
    score_taller,
    shifted,
)
from findings.kept import Job
from model.network import build_network
from search.features import embed_photos, score


def images(count=4, height=24, width=10):
    generator = torch.Generator().manual_seed(0)
    size = count, 3, height, width
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)


def test_shifted_down():
    rows = torch.arange(16).view(1, 1, 8, 2)
    moved = shifted(rows, 0.25)
    assert moved[0, 0, :, 0].tolist() == [0, 0, 0, 2, 4, 6, 8, 10]
    assert shifted(rows, 0.0) is rows
    numbers = torch.arange(4)
    assert torch.equal(QUERIES["shifted"](images(), numbers)[..., 3:, :], images()[..., :-3, :])
    assert torch.equal(QUERIES["shifted far"](images(), numbers)[..., 6:, :], images()[..., :-6, :])


def test_the_lower_third_is_cut():
    whole = images()
    cut = whole.clone()
    cut[..., 16:, :] = 0  # what cannot be seen
    assert torch.equal(partial(cut, torch.arange(4)), partial(whole, torch.arange(4)))
    assert partial(whole, torch.arange(4)).shape == whole.shape
    ramp = torch.arange(240, dtype=torch.uint8).view(1, 1, 240, 1).expand(1, 3, 240, 8)
    stretched = partial(ramp, torch.arange(1))[0, 0, :, 0].int()
    expected = torch.arange(240) * 2 / 3
    assert (stretched - expected).abs().max() <= 1


def test_a_fifth_is_occluded():
    numbers = torch.tensor([5, 6, 7, 8])
    changed = occluded(images(), numbers)
    hidden = (changed != images()).any(1)
    assert (hidden.float().mean((1, 2)) - 10 * 5 / 240).abs().max() < 0.02
    for image, mask in zip(changed, hidden, strict=True):
        top, left = (mask.any(axis).int().argmax() for axis in (1, 0))
        patch = image[:, top : top + 10, left : left + 5]
        assert (patch == patch[:, :1, :1]).all()
    places = {tuple(mask.nonzero()[0].tolist()) for mask in hidden}
    assert len(places) > 1
    alone = occluded(images()[2:], numbers[2:])  # by photo, not by batch
    assert torch.equal(alone, changed[2:])
    assert torch.equal(images(), images())
    assert not torch.equal(occluded(images(), numbers + 1), changed)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_under_every_condition(data, name):
    """The grid is larger while it is tested, and as before afterwards."""
    config = configured(Job(name, "mean", 0), tiny_reid.config())
    network = build_network(config, 8).eval()
    for parameter in network.vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    grids = []
    hook = network.vit.patch_embed.register_forward_hook(
        lambda *args: grids.append(args[2].shape[1])
    )
    score_taller(network, config, data)
    assert set(grids) == {12}
    hook.remove()
    found = score_all(network, config, data)
    assert list(found) == list(CONDITIONS)
    assert set(found) == {*QUERIES, "taller"}
    parts = (embed_photos(network, part, config.size) for part in (data.query, data.gallery))
    plain = score(*parts, data).average_precision
    assert torch.equal(found.pop("as trained").average_precision, plain)
    for other in found.values():
        assert not torch.equal(other.average_precision, plain)


def test_as_they_are():
    assert as_they_are(one := images(), torch.arange(4)) is one


def test_networks_with_side_information_are_told_it(data):
    """As `evaluate.py` tells it; a camera that the training did not have counts as unknown."""
    config = configured(Job("learned", "CLS", 0), tiny_reid.config(sie="camera"))
    network = build_network(config, 8, cameras=(1, 3)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    told = []
    network.sie.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    found = score_all(network, config, data)
    assert {side for sides in told for side in sides[:, 0].tolist()} == {1, 2}
    for is_known in (True, False):
        parts = (
            embed_photos(network, part, config.size, are_cameras_known=is_known)
            for part in (data.query, data.gallery)
        )
        same = torch.equal(
            found["as trained"].average_precision, score(*parts, data).average_precision
        )
        assert same == is_known
