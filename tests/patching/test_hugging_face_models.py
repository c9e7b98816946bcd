"""Vision transformers of Hugging Face: their config tells the layout, and images are checked."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field

import oracles
import pytest
import torch
from expected_bias import BIAS

import posenc
from posenc import TokenLayout, patch_model, patched_encodings
from posenc.analysis import capture_attention

transformers = pytest.importorskip("transformers")


@dataclass(frozen=True)
class Case:
    """A tiny model: its class, its config, the stem of its blocks, and layout by its config."""

    model: str
    config: str
    blocks: str
    told: tuple[int, int, int]
    options: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)


INTERPOLATE = {"interpolate_pos_encoding": True}
CASES = {
    "vit": Case(
        "ViTModel", "ViTConfig", "layers.{}.attention", (3, 5, 1), {"image_size": (12, 20)}
    ),
    "deit": Case(
        "DeiTModel", "DeiTConfig", "layers.{}.attention", (3, 5, 2), {"image_size": (12, 20)}
    ),
    "dinov2": Case("Dinov2Model", "Dinov2Config", "encoder.layer.{}.attention", (4, 4, 1)),
    "registers": Case(
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        "encoder.layer.{}.attention",
        (4, 4, 4),
        {"num_register_tokens": 3},
    ),
    "dinov3": Case(
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        "model.layer.{}.attention",
        (3, 5, 5),
        {"num_register_tokens": 4, "image_size": (12, 20), "key_bias": True},
    ),
    "clip": Case(
        "CLIPVisionModel",
        "CLIPVisionConfig",
        "encoder.layers.{}.self_attn",
        (4, 4, 1),
        call=INTERPOLATE,
    ),
    "siglip": Case(
        "SiglipVisionModel",
        "SiglipVisionConfig",
        "encoder.layers.{}.self_attn",
        (4, 4, 0),
        call=INTERPOLATE,
    ),
}


def build(name):
    """In float64, all weights random, the same at each call."""
    case = CASES[name]
    options = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "mlp_ratio": 1,
        "patch_size": 4,
        "image_size": 16,
        **case.options,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, case.model)(getattr(transformers, case.config)(**options))
        return oracles.randomize(model, 7, 0.3).double().eval()


def images(height=12, width=20, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64)


def outputs(name, model, x, **options):
    return model(pixel_values=x, **CASES[name].call, **options).to_tuple()[0]


def rectangle(name):
    """The layout of 12x20 pixels."""
    return TokenLayout(3, 5, CASES[name].told[2])


def sites(name):
    return [CASES[name].blocks.format(index) for index in range(2)]


def randomize_encodings(model):
    for seed, encoding in enumerate(patched_encodings(model).values()):
        oracles.randomize(encoding, seed, 0.3)
    return model


def turned(x, cos, sin, prefix):
    """By the rotary embedding of the model, two halves of a head as pairs; not prefix tokens."""
    grid = x[:, :, prefix:]
    first, second = grid.chunk(2, dim=-1)
    grid = grid * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([x[:, :, :prefix], grid], dim=2)


def written_out(name, found, encoding, layout):
    """The unpatched model with the encodings `found`, by site, in eager attention."""
    model = build(name)
    for site, parameters in found.items():
        module = model.get_submodule(site)

        def forward(
            hidden_states,
            attention_mask=None,
            position_embeddings=None,
            module=module,
            parameters=parameters,
            **_,
        ):
            q, k, v = (
                projection(hidden_states).unflatten(-1, (2, -1)).transpose(1, 2)
                for projection in (module.q_proj, module.k_proj, module.v_proj)
            )
            if position_embeddings is not None:
                q, k = (turned(x, *position_embeddings, layout[2]) for x in (q, k))
            bias = BIAS[encoding](parameters, q, layout, q.shape[-1] ** -0.5)
            out, _ = oracles.attention(q, k, v, bias, attention_mask)
            last = module.o_proj if hasattr(module, "o_proj") else module.out_proj
            return last(out.transpose(1, 2).flatten(2)), None

        module.forward = forward
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("encoding", ["irpe", "swin", "human_part"])
def test_a_patch_is_the_mathematics(name, encoding):
    model, x, layout = build(name), images(), rectangle(name)
    with torch.no_grad():
        plain = outputs(name, model, x)
        patch_model(model, encoding, layout=layout)
        torch.testing.assert_close(outputs(name, model, x), plain, rtol=1e-10, atol=1e-10)
        randomize_encodings(model)
        actual = outputs(name, model, x)
    assert list(patched_encodings(model)) == [f"{site}.{encoding}" for site in sites(name)]
    assert (actual - plain).abs().max() > 1e-6
    found = dict(zip(sites(name), patched_encodings(model).values(), strict=True))
    eager = written_out(name, found, encoding, (layout.height, layout.width, layout.prefix))
    with torch.no_grad():
        torch.testing.assert_close(actual, outputs(name, eager, x), rtol=1e-8, atol=1e-8)
        posenc.unpatch_model(model)
        assert torch.equal(outputs(name, model, x), plain)
    types = [type(module) for module in model.modules()]
    assert types == [type(module) for module in build(name).modules()]


@pytest.mark.parametrize("name", CASES)
def test_gradients(name):
    model, x, layout = build(name), images(), rectangle(name)
    patch_model(model, "irpe", layout=layout)
    randomize_encodings(model)
    found = dict(zip(sites(name), patched_encodings(model).values(), strict=True))
    eager = written_out(name, found, "irpe", (layout.height, layout.width, layout.prefix))
    encodings = [p for e in found.values() for p in e.parameters()]
    gradients = []
    for each in (model, eager):
        own = [p for key, p in each.named_parameters() if "posenc" not in key]
        out = outputs(name, each, x)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        gradients.append(
            torch.autograd.grad(
                (out * weights).sum(),
                [*own, *encodings],
                allow_unused=True,
                materialize_grads=True,
            )
        )
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_the_config_tells_the_layout(name, tmp_path):
    told, model = TokenLayout(*CASES[name].told), build(name)
    x = images(4 * told.height, 4 * told.width)
    report = posenc.supports(model)
    assert report, report.reason
    assert report.layout == told
    assert list(report.sites) == sites(name)
    with torch.no_grad():
        plain = outputs(name, model, x)
        patch_model(model, "swin")
        torch.testing.assert_close(outputs(name, model, x), plain, rtol=1e-10, atol=1e-10)
        expected = outputs(name, randomize_encodings(model), x)
        posenc.save_encodings(model, tmp_path / "told.safetensors")
        fresh = posenc.load_encodings(build(name), tmp_path / "told.safetensors")
        for other in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(outputs(name, other, x), expected)
    assert str(told) in str(posenc.summary(model))


@pytest.mark.parametrize("name", CASES)
def test_a_layout_that_contradicts_the_config(name):
    told = TokenLayout(*CASES[name].told)
    prefix = TokenLayout(told.height, told.width, told.prefix + 1)
    flat = TokenLayout(1, told.num_grid, told.prefix)  # as many tokens
    for wrong in (prefix, flat, TokenLayout(7, 7, told.prefix + 2)):
        model = build(name)
        with pytest.raises(ValueError, match=rf"layout={_re(wrong)} contradicts .*{_re(told)}: le"):
            patch_model(model, "swin", layout=wrong)
        assert "contradicts" in posenc.supports(model, layout=wrong).reason
        assert not posenc.is_patched(model)
    patch_model(build(name), "swin", layout=told)


def _re(layout):
    return str(layout).replace("+", r"\+")


@pytest.mark.parametrize("name", ["dinov2", "clip", "siglip"])
def test_images_are_compared_with_the_layout(name):
    """Of another shape and as many patches, which the attention cannot tell."""
    model = randomize_encodings(patch_model(build(name), "swin"))
    message = r"embeddings got images of 2x8 patches, but the layout of the model is 4x4.*set_lay"
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        outputs(name, model, images(8, 32))
    layout = TokenLayout(2, 8, CASES[name].told[2])
    posenc.set_layout(model, layout)
    found = dict(zip(sites(name), patched_encodings(model).values(), strict=True))
    eager = written_out(name, found, "swin", (2, 8, layout.prefix))
    with torch.no_grad():
        actual, expected = (outputs(name, m, images(8, 32)) for m in (model, eager))
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
        with pytest.raises(RuntimeError, match=r"images of 4x4 patches, but the layout .* is 2x8"):
            outputs(name, model, images(16, 16))


def test_capturing_compares_them_too():
    model = build("siglip")
    with capture_attention(model) as captured:
        outputs("siglip", model, images(16, 16))
    assert captured.layouts["encoder.layers.0.self_attn"] == TokenLayout(4, 4)
    message = "embeddings got images of 2x8 patches"
    with capture_attention(model), pytest.raises(RuntimeError, match=message):
        outputs("siglip", model, images(8, 32))


def test_pooling_of_siglip_is_left_alone():
    report = posenc.supports(build("siglip"))
    assert list(report.left_alone) == ["head.attention"]
    assert "its query is no token of the grid" in str(report)


def test_a_model_around_it():
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        patch_size=4,
        image_size=(12, 20),
    )
    model = transformers.ViTForImageClassification(config).eval()
    x = torch.randn(1, 3, 12, 20)
    with torch.no_grad():
        plain = model(x).logits
        patch_model(model, "irpe")
        torch.testing.assert_close(model(x).logits, plain)
    assert posenc.summary(model).layout == TokenLayout(3, 5, 1)


def test_two_towers_need_a_layout():
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 10},
        vision_config={**small, "patch_size": 4, "image_size": 16},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    with pytest.raises(ValueError, match="the layout of its tokens is not known"):
        patch_model(model, "swin")
    with pytest.raises(ValueError, match=r"has attention in 2 places"):
        patch_model(model, "swin", layout=TokenLayout(4, 4, 1))
    patch_model(model.vision_model, "swin")
    assert list(patched_encodings(model)) == ["vision_model.encoder.layers.0.self_attn.swin"]


def test_the_rotary_embedding_of_dinov3_is_named():
    with pytest.warns(UserWarning, match="rope_mixed on top of the model's own rotary embedding"):
        model = patch_model(build("dinov3"), "rope_mixed", strength=0)
    report = str(posenc.summary(model))
    assert "own positions:  rotary embedding rope_embeddings\n" in report
