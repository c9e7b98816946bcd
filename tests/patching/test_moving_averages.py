"""timm's moving averages of patched models."""

import pytest
import torch
from patched_vit import adamw, each_case, patched, some_cases, train_step, values
from timm.utils import ModelEma, ModelEmaV2, ModelEmaV3
from tiny_vit import images, vit

from posenc import encoding_parameters, unpatch_model

EMAS = {"ModelEma": ModelEma, "ModelEmaV2": ModelEmaV2, "ModelEmaV3": ModelEmaV3}


def averaged(ema):
    return ema.ema if isinstance(ema, ModelEma) else ema.module


@pytest.mark.parametrize("kind", EMAS)
@each_case
def test_every_encoding_is_averaged_once_per_step(case, kind):
    model = patched(case).train()
    ema, optimizer = EMAS[kind](model, decay=0.75), adamw(model, lr=0.1)
    expected, x = values(model), images(model)
    for seed in range(3):
        with torch.no_grad():
            averaged(ema)(x)  # its remembered terms must not outlive the update
        train_step(model, optimizer, seed)
        ema.update(model)
        state = model.state_dict()
        expected = {key: 0.75 * value + 0.25 * state[key] for key, value in expected.items()}
    for key, value in averaged(ema).state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)
    for name, parameter in encoding_parameters(model):
        assert (expected[name] - parameter).abs().max() > 1e-3, name
    twin = patched(case, seed=9)
    twin.load_state_dict(expected)
    with torch.no_grad():
        torch.testing.assert_close(averaged(ema)(x), twin(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", EMAS)
@some_cases
def test_an_average_has_its_own_layout_and_life(case, kind):
    model = patched(case)
    average = averaged(EMAS[kind](model))
    x = images(model)
    expected = average(x)
    model.set_input_size(img_size=(20, 12))
    assert torch.equal(average(x), expected)
    unpatch_model(model)
    assert torch.equal(average(x), expected)
    assert torch.equal(unpatch_model(average)(x), vit()(x))
