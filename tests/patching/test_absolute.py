"""`absolute="hide"`: the model's own table hidden, or taken over."""

import warnings

import oracles
import pytest
import torch
from random_encodings import randomize_encodings
from tiny_vit import MODELS, eager, images, vit

from posenc import patch_model, patched_encodings


@pytest.mark.parametrize("case", ["cls", "distilled", "reg4", "no_embed_class", "no_prefix"])
def test_remove_hides_the_table(case):
    options, layout = MODELS[case]
    model = vit(**options)
    x = images(model)
    keys = list(model.state_dict())
    with pytest.warns(UserWarning, match="the model's position table is hidden$"):
        patch_model(model, "swin", absolute="hide")
    randomize_encodings(model)
    assert not model.pos_embed.requires_grad
    assert [key for key in model.state_dict() if "posenc" not in key] == keys
    found = patched_encodings(model)

    def bias(name, q, k):
        return oracles.swin_bias(found[f"{name}.swin"].table, *layout)

    expected = eager(model, x, bias, table=False)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(expected, eager(model, x, bias), rtol=1e-3)


@pytest.mark.parametrize("case", ["cls", "distilled", "reg4", "no_embed_class", "no_prefix"])
@pytest.mark.parametrize("options", [{}, {"init": "paper"}])
def test_learned_inherits_the_removed_table(case, options):
    model = vit(**MODELS[case][0])
    x = images(model)
    expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the paper's start has an effect, but is replaced
        patch_model(model, "learned", absolute="hide", **options)
    learned = patched_encodings(model)["learned"]
    rows = model.pos_embed.shape[1]
    assert torch.equal(learned.table[-rows:], model.pos_embed[0])
    assert not learned.table[:-rows].any()
    assert learned.table.requires_grad
    assert learned.table.data_ptr() != model.pos_embed.data_ptr()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
