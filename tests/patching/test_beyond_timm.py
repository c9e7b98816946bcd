"""Models outside timm, patched with a given layout, against attention written out."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass

import oracles
import pytest
import torch
from expected_bias import BIAS
from torch import nn

import posenc
from posenc import TokenLayout, patch_model, patched_encodings

OPTIONS = {"irpe": {}, "swin": {}, "human_part": {}, "quadratic": {"strength": 0.0}}
# A CLS token has pairs with prefix tokens only: without these its last block has no gradient.
WITH_PREFIX = {"prefix_pairs": "separate"}


@dataclass(frozen=True)
class Case:
    """A tiny model: `sites` are its attention modules, `shape` is that of an input."""

    sites: list[str]
    shape: tuple[int, ...]
    layout: tuple[int, int, int] = (3, 5, 1)


IMAGE = (2, 3, 12, 20)
CASES = {
    "hf_vit": Case([f"vit.layers.{i}.attention" for i in range(2)], IMAGE),
    "hf_dinov2": Case([f"encoder.layer.{i}.attention" for i in range(2)], IMAGE),
    "hf_registers": Case([f"encoder.layer.{i}.attention" for i in range(2)], IMAGE, (3, 5, 3)),
    "torchvision": Case(
        [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)],
        (2, 3, 12, 12),
        (3, 3, 1),
    ),
    "torchvision_encoder": Case(
        [f"layers.encoder_layer_{i}.self_attention" for i in range(2)], (2, 16, 8)
    ),
    "open_clip": Case([f"transformer.resblocks.{i}.attn" for i in range(2)], IMAGE),
    "torch": Case([f"layers.{i}.self_attn" for i in range(2)], (2, 16, 8)),
    "torch_norm_first": Case([f"layers.{i}.self_attn" for i in range(2)], (16, 2, 8)),
}


def hugging_face(library, name, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{library}Config")(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        mlp_ratio=1,
        patch_size=4,
        **options,
    )
    return getattr(transformers, name)(config)


def torchvision_vit():
    models = pytest.importorskip("torchvision.models.vision_transformer")
    return models.VisionTransformer(12, 4, 2, 2, 8, 8, num_classes=5)


def torchvision_encoder():
    models = pytest.importorskip("torchvision.models.vision_transformer")
    return models.Encoder(16, 2, 2, 8, 8, 0.0, 0.0)


def open_clip_visual():
    transformer = pytest.importorskip("open_clip.transformer")
    return transformer.VisionTransformer((12, 20), 4, 8, 2, 2, 1.0, output_dim=5)


def torch_encoder(batch_first=True, norm_first=False):
    layer = nn.TransformerEncoderLayer(
        8, 2, 8, dropout=0.0, batch_first=batch_first, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first)


BUILD = {
    "hf_vit": lambda: hugging_face("ViT", "ViTForImageClassification", image_size=(12, 20)),
    # Its table is square, and is interpolated to the image.
    "hf_dinov2": lambda: hugging_face("Dinov2", "Dinov2Model", image_size=12),
    "hf_registers": lambda: hugging_face(
        "Dinov2WithRegisters", "Dinov2WithRegistersModel", image_size=12, num_register_tokens=2
    ),
    "torchvision": torchvision_vit,
    "torchvision_encoder": torchvision_encoder,
    "open_clip": open_clip_visual,
    "torch": torch_encoder,
    "torch_norm_first": lambda: torch_encoder(batch_first=False, norm_first=True),
}


def build(name):
    """In float64, all weights random, the same at each call."""
    return same_at_each_call(BUILD[name]).eval()


def same_at_each_call(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return oracles.randomise(make(), 7, 0.3).double()


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(CASES[name].shape, generator=generator, dtype=torch.float64)


def outputs(model, x, **options):
    result = model(x, **options)
    if hasattr(result, "to_tuple"):  # of transformers
        return result.to_tuple()[0]
    return result


def patch(model, name, encoding="irpe", **options):
    return patch_model(model, encoding, layout=TokenLayout(*CASES[name].layout), **options)


def randomise_encodings(model):
    for seed, encoding in enumerate(patched_encodings(model).values()):
        oracles.randomise(encoding, seed, 0.3)
    return model


# Attention from a module's own weights, in place of its forward


def heads(module, count, x):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def eager_multihead(module, bias):
    """A forward of nn.MultiheadAttention; in its boolean masks True is masked out."""

    def added(mask):
        if mask is None or mask.is_floating_point():
            return 0.0 if mask is None else mask
        return torch.where(mask, -torch.inf, 0.0).to(torch.float64)

    def forward(query, key, value, key_padding_mask=None, attn_mask=None, **_):
        count, tokens_first = module.num_heads, query.dim() == 3 and not module.batch_first
        x = query.transpose(0, 1) if tokens_first else query.reshape(-1, *query.shape[-2:])
        qkv = x @ module.in_proj_weight.T
        qkv = qkv if module.in_proj_bias is None else qkv + module.in_proj_bias
        q, k, v = (heads(module, count, part) for part in qkv.chunk(3, -1))
        mask = added(attn_mask)
        if attn_mask is not None and attn_mask.dim() == 3:
            mask = mask.unflatten(0, q.shape[:2])
        padding = added(key_padding_mask)
        if key_padding_mask is not None:
            padding = padding.reshape(len(x), 1, 1, -1)
        out, _ = oracles.attention(q, k, v, bias(q) + mask + padding)
        out = out.transpose(1, 2).flatten(2) @ module.out_proj.weight.T
        out = out if module.out_proj.bias is None else out + module.out_proj.bias
        return (out.transpose(0, 1) if tokens_first else out.reshape(query.shape)), None

    return forward


def eager_hugging_face(module, bias):
    def forward(x, attention_mask=None, **_):
        projections = (module.q_proj, module.k_proj, module.v_proj)
        q, k, v = (heads(module, module.num_attention_heads, p(x)) for p in projections)
        out, _ = oracles.attention(q, k, v, bias(q), attention_mask)
        return module.o_proj(out.transpose(1, 2).flatten(2)), None

    return forward


def written_out(model, found, encoding, layout):
    """The unpatched `model` with the encodings `found`, by site, in its attention."""
    for site, parameters in found.items():
        module = model.get_submodule(site)

        def bias(q, parameters=parameters):
            return BIAS[encoding](parameters, q, layout, q.shape[-1] ** -0.5)

        eager = eager_multihead if isinstance(module, nn.MultiheadAttention) else eager_hugging_face
        module.forward = eager(module, bias)
    return model


def expected_of(name, model, encoding, call=outputs, plain=None):
    """`call(model, x)` of the unpatched model with attention written out.

    Fused paths of torch would pass over it.
    """
    found = {key.rpartition(".")[0]: e for key, e in patched_encodings(model).items()}
    plain = written_out(plain or build(name), found, encoding, CASES[name].layout)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return call(plain, inputs(name))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("hf_")])
def test_supports_needs_the_layout(name):
    model, case = build(name), CASES[name]
    text = rf"is no model of timm.*{case.sites[0]}, 2 in all.*pass layout=posenc.TokenLayout"
    assert not posenc.supports(model)
    with pytest.raises(ValueError, match=text):
        patch_model(model)
    report = posenc.supports(model, layout=TokenLayout(*case.layout))
    assert report, report.reason
    assert list(report.sites) == case.sites
    assert not posenc.is_patched(model)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("encoding", OPTIONS)
def test_a_patch_without_effect_is_the_model(name, encoding):
    model, x = build(name), inputs(name)
    before = {key: (type(module), set(vars(module))) for key, module in model.named_modules()}
    keys = list(model.state_dict())
    with torch.no_grad():
        expected = outputs(model, x)
        patch(model, name, encoding, **OPTIONS[encoding])
        torch.testing.assert_close(outputs(model, x), expected, rtol=1e-10, atol=1e-10)
        posenc.unpatch_model(model)
        assert torch.equal(outputs(model, x), expected)
    after = {key: (type(module), set(vars(module))) for key, module in model.named_modules()}
    assert after == before
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("encoding", OPTIONS)
def test_a_patch_is_the_mathematics(name, encoding):
    """In eval without gradients, where torch's encoder layers have a fast path."""
    model = randomise_encodings(patch(build(name), name, encoding, **OPTIONS[encoding]))
    assert sorted(patched_encodings(model)) == [f"{s}.{encoding}" for s in CASES[name].sites]
    x = inputs(name)
    with torch.no_grad():
        actual = outputs(model, x)
        assert (actual - outputs(build(name), x)).abs().max() > 1e-6
        expected = expected_of(name, model, encoding)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_parameter(name):
    model = patch(build(name), name, "irpe+swin", swin=WITH_PREFIX).train()
    outputs(randomise_encodings(model), inputs(name)).square().sum().backward()
    for key, parameter in model.named_parameters():
        if "posenc" in key:
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", CASES)
def test_one_layer_and_one_shared_encoding(name):
    """Modules that were not patched stay themselves; nothing is said of the model's class."""
    model = randomise_encodings(patch(build(name), name, "swin", blocks=[1]))
    assert list(patched_encodings(model)) == [f"{CASES[name].sites[1]}.swin"]
    expected = expected_of(name, model, "swin")
    torch.testing.assert_close(outputs(model, inputs(name)), expected, rtol=1e-8, atol=1e-8)

    model = patch(build(name), name, "swin", share=True)
    assert list(patched_encodings(model)) == ["swin"]
    if name != "open_clip":  # it tells optimizers about its parameters
        assert type(model).__name__ == type(build(name)).__name__
    posenc.unpatch_model(model)
    assert list(model.state_dict()) == list(build(name).state_dict())


@pytest.mark.parametrize("name", CASES)
def test_save_load_copy_and_pickle(name, tmp_path):
    model, x = randomise_encodings(patch(build(name), name, "irpe+swin")), inputs(name)
    posenc.save_encodings(model, tmp_path / "encodings.safetensors")
    fresh = posenc.load_encodings(build(name), tmp_path / "encodings.safetensors")
    copies = (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    with torch.no_grad():
        for other in copies:
            assert torch.equal(outputs(other, x), outputs(model, x))
            assert posenc.is_patched(other)
    posenc.unpatch_model(copies[1])
    assert posenc.is_patched(model)


@pytest.mark.parametrize("name", CASES)
def test_summary(name):
    text = str(posenc.summary(patch(build(name), name, "swin")))
    assert str(TokenLayout(*CASES[name].layout)) in text
    assert f"{', '.join(CASES[name].sites)} <- swin" in text
    assert ("absolute table" in text) == (not name.startswith("torch_") and name != "torch")


@pytest.mark.parametrize("name", ["hf_vit", "open_clip", "torch"])
def test_tokens_outside_attention_are_not_known(name):
    model = build(name)
    for encoding in ("peg", "learned", "sinusoidal", "irpe+peg"):
        with pytest.raises(ValueError, match=r"acts on tokens, and where .* is not known"):
            patch(model, name, encoding)
    with pytest.raises(ValueError, match="no absolute position table"):
        patch(model, name, absolute="hide")
    assert not posenc.is_patched(model)


@pytest.mark.parametrize("name", ["open_clip", "torch"])
def test_a_layout_of_another_number_of_tokens(name):
    model = patch_model(build(name), "swin", layout=TokenLayout(3, 4, 1))
    with pytest.raises(RuntimeError, match=r"got 16 tokens, but its layout 3x4.*pass patch_model"):
        model(inputs(name))


def test_a_model_without_attention():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"found no model.*with layout=, MultiheadAttention, ViTA"):
        patch_model(model, layout=TokenLayout(3, 5))


def test_timm_s_flag_does_not_matter():
    from timm.layers import set_fused_attn

    set_fused_attn(False)
    try:
        assert posenc.supports(build("torch"), layout=TokenLayout(3, 5, 1))
        patch(build("torch"), "torch", "swin")
    finally:
        set_fused_attn(True)


# Several places


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.text = build("torch"), build("torch")

    def forward(self, images, words):
        return self.visual(images), self.text(words)


def test_a_text_tower_is_not_patched_silently(tmp_path):
    model, layout = TwoTowers(), TokenLayout(3, 5, 1)
    for blocks in (None, [0]):
        with pytest.raises(ValueError, match=r"2 places \(text.layers.<i>.self_attn, visual.*part"):
            patch_model(model, "swin", layout=layout, blocks=blocks)
    assert "2 places" in posenc.supports(model, layout=layout).reason
    patch_model(model, "swin", layout=layout, blocks=lambda name: name.startswith("visual."))
    assert set(patched_encodings(model)) == {f"visual.layers.{i}.self_attn.swin" for i in (0, 1)}
    posenc.save_encodings(model, tmp_path / "selected")
    posenc.unpatch_model(model)
    posenc.load_encodings(model, tmp_path / "selected")
    assert set(patched_encodings(model)) == {f"visual.layers.{i}.self_attn.swin" for i in (0, 1)}
    posenc.unpatch_model(model)

    patch_model(model.visual, "swin", layout=layout)
    posenc.save_encodings(model, tmp_path / "part")
    posenc.unpatch_model(model)
    with pytest.raises(ValueError, match=r"made for a TransformerEncoder, and this is a TwoTowers"):
        posenc.load_encodings(model, tmp_path / "part")
    posenc.load_encodings(model.visual, tmp_path / "part")
    assert posenc.is_patched(model)


def test_stages_are_several_places():
    model = nn.ModuleList([build("torch"), build("torch")])
    with pytest.raises(ValueError, match=r"2 places \(0.layers.<i>.self_attn, 1.layers.<i>"):
        patch_model(model, "swin", layout=TokenLayout(3, 5, 1))


def test_a_whole_clip():
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": (12, 20), "layers": 2, "width": 64, "patch_size": 4}
    text = {"context_length": 16, "vocab_size": 10, "width": 64, "heads": 1, "layers": 2}
    model = open_clip.CLIP(8, vision, text).eval()
    x = torch.randn(2, 3, 12, 20)
    with torch.no_grad():
        expected = model.encode_image(x)
        with pytest.raises(ValueError, match=r"2 places .*visual.transformer.resblocks.<i>.attn"):
            patch_model(model, "swin", layout=TokenLayout(3, 5, 1))
        patch_model(model.visual, "swin", layout=TokenLayout(3, 5, 1))
        torch.testing.assert_close(model.encode_image(x), expected)
        randomise_encodings(model)
        assert (model.encode_image(x) - expected).abs().max() > 1e-4
    assert "positional_embedding" in model.visual.no_weight_decay()
    assert any("posenc" in name for name in model.visual.no_weight_decay())


# nn.MultiheadAttention


def multihead(**options):
    return same_at_each_call(lambda: nn.MultiheadAttention(8, 2, **options))


def masks():
    generator = torch.Generator().manual_seed(2)
    keep_self = ~torch.eye(16, dtype=torch.bool)  # no row is fully masked
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[0, 12:], padding[1, 7:] = True, True
    pairs = (torch.rand(16, 16, generator=generator) < 0.4) & keep_self
    pairs[:, 0] = False
    per_head = (torch.rand(4, 16, 16, generator=generator) < 0.4) & keep_self
    per_head[:, :, 0] = False
    added = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    added_padding = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    return {
        "none": {},
        "pairs": {"attn_mask": pairs},
        "per_head": {"attn_mask": per_head},
        "added": {"attn_mask": added},
        "padding": {"key_padding_mask": padding},
        "added_padding": {"key_padding_mask": added_padding},
        "both": {"attn_mask": per_head, "key_padding_mask": padding},
        "both_added": {"attn_mask": added, "key_padding_mask": added_padding},
        "causal": {"attn_mask": torch.ones(16, 16).triu(1).bool(), "is_causal": True},
    }


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize(
    ("batch_first", "bias", "encoding"), [(False, True, "irpe"), (True, False, "swin")]
)
def test_masks_of_multihead_attention(kind, batch_first, bias, encoding):
    module, options = multihead(batch_first=batch_first, bias=bias), masks()[kind]
    x = torch.randn(*((2, 16) if batch_first else (16, 2)), 8, dtype=torch.float64)
    plain = copy.deepcopy(module)
    patch_model(module, encoding, layout=TokenLayout(3, 5, 1))
    expected, _ = plain(x, x, x, need_weights=False, **options)
    actual, weights = module(x, x, x, need_weights=False, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert weights is None
    randomise_encodings(module)
    written_out(plain, {"": module.posenc[encoding]}, encoding, (3, 5, 1))
    expected, _ = plain(x, x, x, **options)
    actual, _ = module(x, x, x, need_weights=False, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input(batch_first):
    module = multihead(batch_first=batch_first)
    x, mask = torch.randn(16, 8, dtype=torch.float64), masks()["per_head"]["attn_mask"][:2]
    padding = masks()["padding"]["key_padding_mask"][0]
    options = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": False}
    expected, _ = module(x, x, x, **options)
    patch_model(module, "swin", layout=TokenLayout(3, 5, 1))
    torch.testing.assert_close(module(x, x, x, **options)[0], expected, rtol=1e-10, atol=1e-10)
    randomise_encodings(module)
    plain = written_out(multihead(), {"": module.posenc["swin"]}, "swin", (3, 5, 1))
    actual = module(x, x, x, **options)[0]
    torch.testing.assert_close(actual, plain(x, x, x, **options)[0], rtol=1e-10, atol=1e-10)


def test_calls_that_multihead_attention_refuses():
    module = patch_model(multihead(), "swin", layout=TokenLayout(3, 5, 1))
    x = torch.randn(16, 2, 8, dtype=torch.float64)
    four = x[None]
    with pytest.raises(ValueError, match=r"does not return attention weights.*need_weights=False"):
        module(x, x, x)
    with pytest.raises(ValueError, match="query, key and value are the same tensor"):
        module(x, x.clone(), x, need_weights=False)
    with pytest.raises(ValueError, match="without attn_mask: pass the mask"):
        module(x, x, x, need_weights=False, is_causal=True)
    with pytest.raises(ValueError, match=r"takes \[N, C\] or a batch of it"):
        module(four, four, four, need_weights=False)
    for options in (
        {"attn_mask": torch.zeros(1, 16)},  # would broadcast
        {"attn_mask": torch.zeros(16, 16, dtype=torch.long)},
        {"attn_mask": torch.zeros(2, 16, 16)},
        {"key_padding_mask": torch.zeros(16, 2)},
        {"key_padding_mask": torch.zeros(16)},
    ):
        with pytest.raises(ValueError, match=r"takes (attn|key_padding)_mask boolean \(True = mas"):
            module(x, x, x, need_weights=False, **options)


class OwnForward(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.MultiheadAttention(8, 2, kdim=4), "cross attention"),
        (nn.MultiheadAttention(8, 2, vdim=4), "cross attention"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "a key that has no position"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), "a key that has no position"),
        (OwnForward(8, 2), "OwnForward has a forward of its own"),
    ],
)
def test_modules_that_are_refused(module, reason):
    model = nn.Sequential(module)
    assert reason in str(posenc.supports(model, layout=TokenLayout(3, 5, 1)))
    with pytest.raises(ValueError, match=rf"0 cannot be patched: .*{reason}"):
        patch_model(model, layout=TokenLayout(3, 5, 1))
    assert type(model[0]) is type(module)


def test_dropout_is_that_of_the_module():
    module = patch_model(multihead(dropout=1.0), "swin", layout=TokenLayout(3, 5, 1))
    x = torch.randn(16, 2, 8, dtype=torch.float64)
    nothing = module.out_proj.bias.expand(16, 2, 8)
    assert torch.equal(module(x, x, x, need_weights=False)[0], nothing)
    assert not torch.equal(module.eval()(x, x, x, need_weights=False)[0], nothing)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fast_path_of_an_encoder_layer_has_the_bias(norm_first):
    """It reads the parameters of the attention and never calls it."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, norm_first=norm_first).eval()
    x = torch.randn(2, 16, 8)
    with torch.no_grad():
        before = layer(x)
        patch_model(layer, "swin", layout=TokenLayout(3, 5, 1))
        torch.testing.assert_close(layer(x), before)
        randomise_encodings(layer)
        with_bias = layer(x)
        assert (with_bias - before).abs().max() > 1e-3
    torch.testing.assert_close(layer(x), with_bias)  # with gradients there is no fast path
    posenc.unpatch_model(layer)
    with torch.no_grad():
        assert torch.equal(layer(x), before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_in_an_encoder():
    padding = masks()["padding"]["key_padding_mask"]
    model = randomise_encodings(patch(build("torch"), "torch", "swin"))
    x = inputs("torch")
    with torch.no_grad(), pytest.raises(ValueError, match="set use_nested_tensor = False"):
        model(x, src_key_padding_mask=padding)
    model.use_nested_tensor = False

    def call(model, x):
        return model(x, src_key_padding_mask=padding)

    plain = build("torch")
    plain.use_nested_tensor = False
    with torch.no_grad():
        expected = expected_of("torch", model, "swin", call, plain)
        torch.testing.assert_close(call(model, x), expected, rtol=1e-8, atol=1e-8)


# Hugging Face


HUGGING_FACE = ["hf_vit", "hf_dinov2"]


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_the_config_stays(name, tmp_path):
    model = build(name)
    before = model.config.to_dict(), model.config._attn_implementation
    patch(model, name, "swin")
    assert (model.config.to_dict(), model.config._attn_implementation) == before
    module = model.get_submodule(CASES[name].sites[0])
    assert module.config.hidden_size == 8
    another = type(model)(model.config).double().eval()  # of the same config, not patched
    assert outputs(another, inputs(name)).isfinite().all()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [type(build(name)).__name__]
    assert "posenc" not in json.dumps(saved)
    posenc.unpatch_model(model)
    assert module.config is model.config


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_another_attention_implementation(name):
    model, x = randomise_encodings(patch(build(name), name, "swin")), inputs(name)
    with torch.no_grad():
        expected = outputs(model, x)
        model.set_attn_implementation("eager")
        assert torch.equal(outputs(model, x), expected)
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match=r'set_attn_implementation\("sdpa"\)'):
            model.get_submodule(CASES[name].sites[0])(torch.rand(2, 16, 8, dtype=torch.float64))
    posenc.unpatch_model(model)
    reason = posenc.supports(model, layout=TokenLayout(3, 5, 1)).refused[CASES[name].sites[0]]
    assert "makes masks that posenc does not know" in reason


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_attention_weights_are_not_returned(name):
    model = patch(build(name), name, "swin")
    with pytest.raises(ValueError, match="does not return attention weights"):
        model(inputs(name), output_attentions=True)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="does not return attention weights"):
        model(inputs(name))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_mask_of_a_model(implementation):
    model = randomise_encodings(patch(build("hf_vit"), "hf_vit", "irpe"))
    model.set_attn_implementation(implementation)
    keep = ~masks()["padding"]["key_padding_mask"]

    def call(model, x):
        return outputs(model, x, attention_mask=keep)

    with torch.no_grad():
        actual = call(model, inputs("hf_vit"))
        assert (actual - outputs(model, inputs("hf_vit"))).abs().max() > 1e-6
        expected = expected_of("hf_vit", model, "irpe", call)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_the_registered_function_is_for_patched_modules():
    model = patch(build("hf_vit"), "hf_vit", "swin", blocks=[0])
    model.set_attn_implementation("posenc")
    posenc.unpatch_model(model)
    with pytest.raises(ValueError, match='attn_implementation="posenc" is for modules that'):
        model(inputs("hf_vit"))
