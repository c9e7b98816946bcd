import oracles
import pytest
import torch
from tiny_vit import images, vit

import posenc
from posenc import Sinusoidal, TokenLayout
from posenc.functional.sincos import sincos_table

OPTIONS = [
    {"convention": "moco_v3"},
    {"convention": "detr"},
    {"convention": "detr", "normalize": True},
    {"convention": "positional_encodings"},
    {"convention": "mae_1d"},
    {"convention": "timm", "reverse_coord": True},
    {"convention": "timm", "interleave_sin_cos": True},
    {"convention": "timm", "reverse_coord": True, "interleave_sin_cos": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_adds_its_table_on_any_grid(options, prefix):
    encoding = Sinusoidal(TokenLayout(4, 4), 12, strength=0.7, dtype=torch.float64, **options)
    used = TokenLayout(3, 5, prefix)
    x, cotangent, _, _ = oracles.random_qkv(used.num_tokens, heads=1, head_dim=12)
    out = encoding(x[:, 0], used)
    table = sincos_table(used, 12, dtype=torch.float64, **options)
    torch.testing.assert_close(out, x[:, 0] + 0.7 * table, atol=1e-12, rtol=0)
    out.backward(cotangent[:, 0].detach())
    torch.testing.assert_close(encoding.strength.grad[0], (cotangent[:, 0] * table).sum())
    torch.testing.assert_close(x.grad, cotangent.detach())


def test_options_are_kept_in_files(tmp_path):
    model = vit()
    options = {"convention": "detr", "normalize": True, "strength": 0.0}
    posenc.patch_model(model, "sinusoidal", **options)
    encoding = posenc.patched_encodings(model)["sinusoidal"]
    assert "convention=detr" in repr(encoding)
    assert "normalize=True" in repr(encoding)
    assert "reverse_coord" not in repr(encoding)
    torch.nn.init.constant_(encoding.strength, 0.5)
    posenc.save_encodings(model, tmp_path / "file.safetensors")
    again, x = (
        posenc.load_encodings(model_like(model), tmp_path / "file.safetensors"),
        images(model),
    )
    assert torch.equal(again(x), model(x))


def model_like(model):
    fresh = vit()
    plain = {key: value for key, value in model.state_dict().items() if "posenc" not in key}
    fresh.load_state_dict(plain)
    return fresh


@pytest.mark.parametrize("flag", ["reverse_coord", "interleave_sin_cos", "normalize"])
def test_refuses_flags_that_are_no_flags_or_of_another_convention(flag):
    with pytest.raises(TypeError, match=rf"Sinusoidal: {flag} must be True or False, got 'no'"):
        Sinusoidal(TokenLayout(2, 3), 8, **{flag: "no"})
    with pytest.raises(ValueError, match=rf"Sinusoidal: {flag}=True is an option of .* got 'mae'"):
        Sinusoidal(TokenLayout(2, 3), 8, **{flag: True})


@pytest.mark.parametrize(
    ("convention", "width", "multiple"), [("moco_v3", 6, 4), ("detr", 10, 4), ("mae_1d", 5, 2)]
)
def test_refuses_a_width_that_does_not_fit(convention, width, multiple):
    with pytest.raises(ValueError, match=rf"embed_dim must be a multiple of {multiple} .*{width}"):
        Sinusoidal(TokenLayout(2, 3), width, convention=convention)
