"""What a patch leaves as it was: outputs, keys, their order, parameters."""

import pytest
import torch
from random_encodings import SILENT
from tiny_vit import MODELS, eager, images, vit

from posenc import patch_model


@pytest.mark.parametrize("case", MODELS)
def test_the_oracle_is_the_model(case):
    model = vit(**MODELS[case][0])
    x = images(model)
    torch.testing.assert_close(eager(model, x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("name", SILENT)
def test_identity_at_patch_time(name, case):
    model = vit(**MODELS[case][0])
    x = images(model)
    expected = model(x)
    assert patch_model(model, name, **SILENT[name]) is model
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    model.train()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SILENT)
def test_identity_at_patch_time_in_float32(name):
    model = vit(5, dtype=torch.float32)
    x = images(model)
    expected = model(x)
    patch_model(model, name, **SILENT[name])
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SILENT)
def test_old_keys_order_and_parameters_stay(name):
    model = vit(5)
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    patch_model(model, name, **SILENT[name])
    new = [key for key in model.state_dict() if key not in keys]
    assert [key for key in model.state_dict() if "posenc" not in key.split(".")] == keys
    assert new
    where = {"peg": "blocks.0.posenc.peg.", "learned": "posenc.learned."}
    where["sinusoidal"] = "posenc.sinusoidal."
    assert new[0].startswith(where.get(name, f"blocks.0.attn.posenc.{name}."))
    after = dict(model.named_parameters())
    assert all(after[key] is parameter for key, parameter in parameters.items())
