"""Stages with grids of their own: told by the model, or seen in the map that attention receives."""

from __future__ import annotations

import copy
import pickle

import pytest
import tiny_windowed
import torch
from eager_attention import biased_attention
from expected_bias import BIAS
from random_encodings import randomize_encodings
from tiny_stages import MAKE, SIZE, build, grids, images

import posenc
from posenc import TokenLayout, patch_model, patched_encodings
from posenc.analysis import capture_attention


@pytest.mark.parametrize("name", MAKE)
def test_supports(name):
    report = posenc.supports(build(name))
    assert report, report.reason
    expected = [TokenLayout(*grid) for grid in grids(name, *SIZE)]
    assert list(report.layouts.values()) == expected
    assert report.left_alone == {}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("encoding", ["irpe", "swin", "human_part"])
@pytest.mark.parametrize("size", [SIZE, (160, 96), (97, 130)])
def test_a_patch_is_the_mathematics(name, encoding, size):
    """For the size that the model was made for and for others, which the maps tell."""
    model, plain, x = build(name), build(name), images(*size)
    sites = list(posenc.supports(model).sites)
    with torch.no_grad():
        expected = plain(x)
        patch_model(model, encoding)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        randomize_encodings(model)
        found = patched_encodings(model)
        layouts = dict(zip(sites, grids(name, *size), strict=True))

        def bias(site, q, k):
            layout = (*layouts[site], 0)
            return BIAS[encoding](found[f"{site}.{encoding}"], q, layout, q.shape[-1] ** -0.5)

        with biased_attention(plain, bias):
            with_bias = plain(x)
        assert (with_bias - expected).abs().max() > 1e-6
        torch.testing.assert_close(model(x), with_bias, rtol=1e-8, atol=1e-8)
        assert list(posenc.summary(model).layouts.values()) == [
            TokenLayout(*grid) for grid in grids(name, *size)
        ]
        posenc.unpatch_model(model)
        assert torch.equal(model(x), expected)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("name", MAKE)
def test_gradients(name):
    model, plain, x = build(name), build(name), images(*SIZE)
    sites = list(posenc.supports(model).sites)
    randomize_encodings(patch_model(model, "swin"))
    found = patched_encodings(model)
    layouts = dict(zip(sites, grids(name, *SIZE), strict=True))
    own = [name for name, _ in plain.named_parameters()]
    weights = torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5)

    def gradients(each):
        parameters = [each.get_parameter(name) for name in own]
        parameters += [p for e in found.values() for p in e.parameters()]
        loss = (each(x) * weights).sum()
        return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)

    def bias(site, q, k):
        return BIAS["swin"](found[f"{site}.swin"], q, (*layouts[site], 0), None)

    with biased_attention(plain, bias):
        expected = gradients(plain)
    for actual, one in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(actual, one, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", MAKE)
def test_capture_sees_the_map(name):
    """Before a patch and after it; for another size than that of the model."""
    model, x = build(name), images(160, 96)
    expected = [TokenLayout(*grid) for grid in grids(name, 160, 96)]
    with torch.no_grad():
        plain = model(x)
        for _ in range(2):
            with capture_attention(model) as captured:
                assert torch.equal(model(x), plain)
            assert list(captured.layouts.values()) == expected
            for (site, attention), layout in zip(captured.attention.items(), expected, strict=True):
                assert attention.shape[-1] == layout.num_tokens, site
            if not posenc.is_patched(model):
                patch_model(model, "swin")
                plain = model(x)


@pytest.mark.parametrize("name", MAKE)
def test_models_that_name_no_size(name):
    model = build(name, size=None)
    with pytest.raises(ValueError, match=r"set model.pretrained_cfg = dict\(input_size=\(3, heig"):
        patch_model(model, "swin")
    assert not posenc.supports(model)


def test_windows_inside_are_left_alone():
    model = build("iformer")
    model.stages[2].blocks[1].mixer.module.window_size = 2
    report = posenc.supports(model)
    assert set(report.left_alone.values()) == {"it cuts its map into windows itself"}


SITES = [name for name, case in tiny_windowed.CASES.items() if case.sites]


@pytest.mark.parametrize("name", [*SITES, *MAKE])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_read_their_own_stages(name, copied):
    model, x = (
        (build(name), images(*SIZE))
        if name in MAKE
        else (tiny_windowed.build(name), tiny_windowed.images(name))
    )
    randomize_encodings(patch_model(model, "swin"))
    with torch.no_grad():
        expected = model(x)
        twin = copied(model)
        assert torch.equal(twin(x), expected)
        inside = {id(module) for module in twin.modules()}
        for module in twin.modules():
            site = vars(module).get("_posenc")
            source = getattr(site and site.layout, "rest", site and site.layout)
            for value in vars(source).values() if source is not None else ():
                assert not isinstance(value, torch.nn.Module) or id(value) in inside
        posenc.unpatch_model(twin)
        assert torch.equal(model(x), expected)


def test_sizes_are_followed_not_set():
    model = patch_model(build("fastvit"), "swin")
    with pytest.raises(ValueError, match=r"takes images of any size, .* without set_layout"):
        posenc.set_layout(model, (192, 256))
