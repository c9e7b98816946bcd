"""Captured attention of every family of models, of timm and of others."""

import dynamic_vit
import oracles
import pytest
import tiny_global
import tiny_windowed
import torch
from capture_cases import assert_close, patched
from eager_attention import biased_attention, heads_first
from tiny_vit import snapshot
from torch import nn

from posenc import TokenLayout, patch_model, patched_encodings, unpatch_model
from posenc.analysis import capture_attention

GLOBAL = {name: (tiny_global, case) for name, case in tiny_global.CASES.items()}
WINDOWED = {n: (tiny_windowed, case) for n, case in tiny_windowed.CASES.items() if case.sites}
EVERY = {**GLOBAL, **{f"windows {name}": both for name, both in WINDOWED.items()}}


def every_model(name):
    source, case = EVERY[name]
    model = source.build(name.removeprefix("windows "))
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((2, 3, *case.image), generator=generator, dtype=torch.float64)
    return model, x, case


def expected_attention(model, x, scale):
    """Of each module, heads of further calls behind those of the first."""
    found = {}
    with torch.no_grad(), biased_attention(model) as calls:
        model(x)
    for call in calls:
        scores = call.q @ call.k.transpose(-2, -1) * (scale or call.q.shape[-1] ** -0.5)
        weights = (scores + (0.0 if call.mask is None else call.mask)).softmax(-1)
        found[call.name] = (*found.get(call.name, ()), weights)
    return {name: torch.cat(weights, 1) for name, weights in found.items()}


@pytest.mark.parametrize("name", EVERY)
def test_every_family_as_it_is(name):
    model, x, case = every_model(name)
    before = snapshot(model)
    with torch.no_grad():
        outputs = model(x)
        with capture_attention(model) as captured:
            assert torch.equal(model(x), outputs)
        assert torch.equal(model(x), outputs)
    assert snapshot(model) == before
    assert set(captured.attention) == set(case.sites)
    assert captured.bias == {}
    assert set(captured.left_out) == {site for site in case.others if site != "attn_pool"}
    expected = expected_attention(model, x, case.scale)
    for site, sees in case.sites.items():
        assert captured.layouts[site] == TokenLayout(*sees.layout)
        assert_close(captured.attention[site], expected[site], 1e-9)


@pytest.mark.parametrize(
    "name",
    ["windows swin", "windows swin_v2", "windows maxvit", "windows nest", "sam", "vit_diff"],
)
def test_families_that_are_patched(name):
    model, x, case = every_model(name)
    patch_model(model, "swin", blocks=lambda site: site in case.sites)
    tables = {}
    for seed, (site, encoding) in enumerate(patched_encodings(model).items()):
        oracles.randomize(encoding, seed)
        layout = case.sites[site.removesuffix(".swin")].layout
        tables[site.removesuffix(".swin")] = oracles.swin_bias(encoding.table, *layout).detach()
    with torch.no_grad():
        outputs = model(x)
        with capture_attention(model) as captured:
            assert torch.equal(model(x), outputs)
    assert set(captured.attention) == set(captured.bias) == set(case.sites)
    unpatch_model(model)
    found = {}
    with torch.no_grad(), biased_attention(model, lambda site, q, k: tables[site]) as calls:
        model(x)
    for call in calls:
        mask = 0.0 if call.mask is None else call.mask
        scale = case.scale or call.q.shape[-1] ** -0.5
        scores = call.q @ call.k.transpose(-2, -1) * scale + mask
        found.setdefault(call.name, []).append((scores + tables[call.name]).softmax(-1))
    for site, weights in found.items():
        assert_close(captured.attention[site], torch.cat(weights, 1), 1e-9)
        heads = case.sites[site].num_heads
        for bias in captured.bias[site].split(heads, 1):
            assert_close(bias, tables[site])


@pytest.mark.parametrize("encoding", [None, "peg", "swin"])
@pytest.mark.parametrize("name", ["vit", "vit_padded", "eva", "deepseek", "sam"])
def test_layouts_follow_images_of_any_size(name, encoding):
    model = dynamic_vit.build(name)
    if encoding == "peg" and name in ("sam",):
        pytest.skip("peg needs one grid")
    patched(encoding, model)
    for grid in [(3, 5), (5, 3), (2, 7)]:
        x = dynamic_vit.images(grid)
        with torch.no_grad():
            outputs = model(x)
            with capture_attention(model) as captured:
                assert torch.equal(model(x), outputs)
        layouts = {n: layout for n, layout in captured.layouts.items() if name != "sam"}
        prefix = dynamic_vit.PREFIX.get(name, 0)
        assert set(layouts.values()) <= {TokenLayout(*grid, prefix)}
        for site, layout in captured.layouts.items():
            assert captured.attention[site].shape[-1] == layout.num_tokens
        assert len(captured.attention) == 2


def outside_timm(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "torchvision":
            models = pytest.importorskip("torchvision.models.vision_transformer")
            model = models.VisionTransformer(12, 4, 2, 2, 8, 8, num_classes=5)
            shape, layout = (2, 3, 12, 12), TokenLayout(3, 3, prefix=1)
        else:
            transformers = pytest.importorskip("transformers")
            config = transformers.ViTConfig(
                hidden_size=8,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=8,
                image_size=(12, 20),
                patch_size=4,
            )
            model = transformers.ViTModel(config, add_pooling_layer=False)
            shape, layout = (2, 3, 12, 20), TokenLayout(3, 5, prefix=1)
        model = oracles.randomize(model, 7, 0.3).double().eval()
        return model, torch.randn(shape, dtype=torch.float64), layout


def weights_outside_timm(name, model, x):
    """As these libraries return them."""
    if name == "huggingface":
        model.set_attn_implementation("eager")
        found = model(x, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
        return list(found)
    found = []

    def note(module, args, kwargs, output):
        found.append(module.forward(*args, need_weights=True, average_attn_weights=False)[1])

    layers = [layer.self_attention for layer in model.encoder.layers]
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("blocks", [None, slice(0, 1)])
@pytest.mark.parametrize("encoding", [None, "swin"])
@pytest.mark.parametrize("name", ["torchvision", "huggingface"])
def test_models_outside_timm(name, encoding, blocks):
    model, x, layout = outside_timm(name)

    def outputs():
        result = model(x)
        return getattr(result, "last_hidden_state", result)

    with torch.no_grad():
        weights = weights_outside_timm(name, model, x)
        if encoding is not None:
            patch_model(model, encoding, layout=layout, blocks=blocks)  # without effect
        before, expected = snapshot(model), outputs()
        options = {} if encoding else {"layout": layout}
        with capture_attention(model, **options) as captured:
            assert torch.equal(outputs(), expected)
        assert snapshot(model) == before
        assert torch.equal(outputs(), expected)
    count = 1 if encoding and blocks else 2
    assert len(captured.attention) == count
    assert len(captured.left_out) == 2 - count
    for actual, wanted in zip(captured.attention.values(), weights, strict=False):
        assert_close(actual, wanted, 1e-6)  # transformers computes softmax in float32


def test_layers_that_bypass_their_attention_are_refused():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1).eval()
    layout, x = TokenLayout(3, 5, prefix=1), torch.randn(2, 16, 8)
    with (
        pytest.raises(ValueError, match=r"layers\.0 is a TransformerEncoderLayer.*patch the"),
        capture_attention(encoder, layout=layout),
    ):
        pass
    patch_model(encoder, "swin", layout=layout)
    with torch.no_grad(), capture_attention(encoder) as captured:
        encoder(x)
    assert list(captured.attention) == ["layers.0.self_attn"]


def test_a_module_that_is_itself_attention():
    attention = oracles.randomize(nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    x = torch.randn(2, 16, 8)
    with torch.no_grad(), capture_attention(attention, layout=TokenLayout(3, 5, 1)) as captured:
        attention(x, x, x, need_weights=False)
    assert list(captured.attention) == ["MultiheadAttention"]
    expected = attention(x, x, x, average_attn_weights=False)[1]
    assert_close(captured.attention["MultiheadAttention"], expected.detach(), 1e-5)


def test_heads_of_windows_are_in_the_batch_as_documented():
    model, x, case = every_model("windows swin")
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    for site, sees in case.sites.items():
        height, width, _ = sees.layout
        weights = captured.attention[site]
        assert weights.shape[1:] == (sees.num_heads, height * width, height * width)
        assert weights.shape[0] % len(x) == 0
        assert weights.shape[0] > len(x)


def test_the_oracle_of_windows_puts_heads_second():
    assert heads_first(torch.zeros(2, 3, 4, 5, 6), 2).shape == (6, 4, 5, 6)
