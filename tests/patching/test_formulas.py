"""Patched models against the papers' formulas, written out."""

import pytest
import torch
from patch_cases import expected_logits
from random_encodings import SILENT, randomize_encodings
from tiny_vit import MODELS, images, vit

from posenc import patch_model


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("name", SILENT)
def test_equals_the_papers_formula(name, case):
    options, layout = MODELS[case]
    model = vit(**options)
    x = images(model)
    before = model(x)
    randomize_encodings(patch_model(model, name, **SILENT[name]))
    expected = expected_logits(model, name, layout, x)
    assert not torch.allclose(expected, before, rtol=1e-3)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():  # with the remembered terms
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("names", ["peg+irpe", "irpe+swin+learned", "sinusoidal+peg+quadratic"])
@pytest.mark.parametrize("case", ["reg4", "parallel_scaling"])
def test_compositions_equal_the_papers_formulas(names, case):
    options, layout = MODELS[case]
    each = {name: SILENT[name] for name in names.split("+")}
    model = randomize_encodings(patch_model(vit(**options), names, **each))
    x = images(model)
    expected = expected_logits(model, names, layout, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
