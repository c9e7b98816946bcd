"""Random numbers, device, dtype and mode of the modules that a patch adds."""

import pytest
import torch
from patch_cases import ALL
from random_encodings import SILENT, randomize_encodings
from tiny_vit import images, vit

import posenc
from posenc import patch_model, patched_encodings, unpatch_model


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("irpe", {}),
        ("swin", {"init": "paper"}),
        ("peg", {"init": "paper"}),
        ("learned", {"init": "paper"}),
        ("quadratic", {"init": "normal"}),
        ("quadratic", {"init": "normal", "share": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_random_state_is_untouched(names, options):
    model = vit(depth=3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    patch_model(model, names, **options)
    assert torch.equal(torch.get_rng_state(), before)
    unpatch_model(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_random_starts_follow_the_seed_and_differ_by_site():
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = patch_model(vit(), "swin", init="paper")
        tables += [encoding.table for encoding in patched_encodings(model).values()]
    assert torch.equal(tables[0], tables[2])
    assert torch.equal(tables[1], tables[3])
    assert not torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[4])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [False, True])
def test_new_modules_take_dtype_and_mode(dtype, share):
    for training in (True, False):
        model = vit(5, dtype=dtype).train(training)
        each = {name: SILENT[name] for name in SILENT if SILENT[name]}
        x = images(model)
        expected = model.eval()(x)
        patch_model(model.train(training), ALL, share=share, **each)
        for encoding in patched_encodings(model).values():
            assert {p.dtype for p in encoding.parameters()} == {dtype}
            assert all(module.training is training for module in encoding.modules())
        out = model.eval()(x)
        assert out.dtype == dtype
        # Five operations per layer that may round differently, two layers.
        tolerance = 20 * torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)


def test_mode_of_each_site():
    model = vit().eval()
    model.blocks[1].train()
    patch_model(model, "irpe")
    found = patched_encodings(model)
    assert not found["blocks.0.attn.irpe"].training
    assert found["blocks.1.attn.irpe"].training


def test_dtype_of_each_site():
    model = vit(dtype=torch.float32)
    model.blocks[1].double()
    patch_model(model, "irpe")
    found = patched_encodings(model)
    assert found["blocks.0.attn.irpe"].table_k.dtype == torch.float32
    assert found["blocks.1.attn.irpe"].table_k.dtype == torch.float64


def meta_vit():
    return vit().to("meta")


@pytest.mark.parametrize("share", [False, True])
def test_a_meta_model_stays_meta(share):
    model = meta_vit()
    each = {name: SILENT[name] for name in SILENT if SILENT[name]}
    patch_model(model, ALL, share=share, absolute="hide", **each)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert "new parameters" in str(posenc.summary(model))
    unpatch_model(model)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_meta_model_runs():
    model = patch_model(meta_vit(), "peg+irpe")
    out = model(torch.zeros(2, 3, 12, 20, device="meta", dtype=torch.float64))
    assert (out.shape, out.device.type) == ((2, 5), "meta")


def test_an_empty_model_can_be_filled():
    """Patched without memory, given memory, loaded."""
    source = randomize_encodings(patch_model(vit(), "peg+irpe+swin"))
    model = patch_model(meta_vit(), "peg+irpe+swin").to_empty(device="cpu")
    model.load_state_dict(source.state_dict())
    x = images(model)
    assert torch.equal(model(x), source(x))


def test_moving_a_patched_model():
    model = randomize_encodings(patch_model(vit(), "peg+swin", share=True))
    x = images(model)
    expected = model(x)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=1e-4, atol=1e-4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
