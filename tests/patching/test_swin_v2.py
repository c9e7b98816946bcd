"""Swin V2 of timm, both versions: its own cosine attention stays in force in a patched model.

That a patch is the mathematics, and is captured, is tested with all families
(`tests/conformance/test_models.py`, `tests/analysis/test_capture_families.py`).
"""

import copy
import pickle

import oracles
import pytest
import tiny_windowed
import torch
from random_encodings import randomize_encodings
from timm.models.swin_transformer_v2 import WindowAttention
from tiny_vit import snapshot

import posenc
from posenc import TokenLayout, patch_model
from posenc.analysis import capture_attention

NAMES = ["swin_v2", "swin_v2_pretrained", "swin_v2_cr"]
every = pytest.mark.parametrize("name", NAMES)


def build(name, dtype=torch.float64):
    """One head is beyond the limit of the scale."""
    model = tiny_windowed.build(name, dtype=dtype)
    with torch.no_grad():
        for module in attentions(model):
            module.logit_scale.view(-1)[0] = 6.0
    return model


def attentions(model):
    return [module for module in model.modules() if hasattr(module, "logit_scale")]


def images(batch=2, dtype=torch.float64, size=(12, 20)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)


def assert_close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradients(model, x):
    parameters = dict(model.named_parameters())
    own = [p for name, p in parameters.items() if ".posenc." not in name]
    out = model(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), own)


@every
def test_every_gradient_is_that_of_the_model(name):
    model = build(name)
    expected = gradients(model, images())
    assert all(gradient.abs().max() > 0 for gradient in expected[:8])
    patch_model(model, "swin+cpb")
    assert len(expected) == len(gradients(model, images()))
    for actual, wanted in zip(gradients(model, images()), expected, strict=True):
        assert_close(actual, wanted)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"qkv_bias_separate": True}])
@pytest.mark.parametrize("windows", [None, 3])
def test_a_window_module_by_itself(options, windows):
    """Several images of several windows: each window has its own mask, in every image."""
    module = WindowAttention(8, (2, 3), 2, pretrained_window_size=(4, 2), **options).double().eval()
    oracles.randomize(module, 2, 0.4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 6, 8, generator=generator, dtype=torch.float64)
    mask = None
    if windows is not None:
        mask = torch.randn(windows, 6, 6, generator=generator, dtype=torch.float64) * 3
    expected = module(x, mask)
    patch_model(module, "swin", layout=TokenLayout(2, 3))
    assert_close(module(x, mask), expected)


@every
def test_its_own_bias_is_named(name):
    model = build(name)
    what = "meta_mlp" if name == "swin_v2_cr" else "cpb_mlp"
    assert posenc.supports(model).own_positions == (f"relative bias {what} in 4 modules",)
    text = str(posenc.summary(patch_model(model, "cpb")))
    assert "cpb on top of the model's own relative bias" in text


@every
def test_a_scale_of_our_own_takes_the_place_of_the_models(name):
    model, x = build(name), images()
    before = model(x)
    with pytest.warns(UserWarning, match="CosineAttention has an effect from the start"):
        patch_model(model, "cosine")
    encodings = posenc.patched_encodings(model)
    with torch.no_grad():
        for module, encoding in zip(attentions(model), encodings.values(), strict=True):
            encoding.log_scale.copy_(module.logit_scale.flatten())
    assert_close(model(x), before)
    with torch.no_grad():
        for module in attentions(model):
            module.logit_scale.zero_()
    assert_close(model(x), before)


@every
def test_dropped_weights(name):
    model = patch_model(build(name), "swin")
    x, expected = images(), model(images())
    for module in attentions(model):
        module.attn_drop.p = 0.5
    assert torch.equal(model(x), expected)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in attentions(model):
            module.attn_drop.train()
        one, other = model(x), model(x)
        assert not torch.allclose(one, other)
        for module in attentions(model):
            module.attn_drop.p = 1.0  # nothing is left but the projection's bias
        all_dropped = model(x)
        assert_close(all_dropped, posenc.unpatch_model(model)(x))
    assert not torch.allclose(all_dropped, expected)


def test_the_mean_of_dropped_weights():
    module = WindowAttention(8, (2, 3), 2, attn_drop=0.3).double().eval()
    oracles.randomize(module, 2, 0.4)
    x = images().flatten()[:48].view(1, 6, 8)
    expected = module(x)
    patch_model(module, "swin", layout=TokenLayout(2, 3))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module.train()
        drawn = module(x.expand(4000, -1, -1))
    deviation = drawn.std(0)
    assert deviation.min() > 0.1
    assert ((drawn.mean(0) - expected[0]).abs() < 5 * deviation / 4000**0.5).all()


@every
@pytest.mark.parametrize("size", [(20, 12), (24, 28)])
def test_another_input_size(name, size):
    model, plain, x = build(name), build(name), images(size=size)
    patch_model(model, "cpb")
    for each in (model, plain):
        each.set_input_size(img_size=size)
    assert_close(model(x), plain(x))
    windows = [TokenLayout(*module.window_size) for module in attentions(plain)]
    assert [*posenc.summary(model).layouts.values()] == windows
    posenc.set_layout(model, images().shape[2:])
    assert_close(model(images()), build(name)(images()))


def test_other_windows_at_the_same_size():
    model, plain = build("swin_v2"), build("swin_v2")
    patch_model(model, "swin+cpb")
    for each in (model, plain):
        each.set_input_size(window_size=((3, 2), (2, 5)))
    assert_close(model(images()), plain(images()))
    layouts = {str(layout) for layout in posenc.summary(model).layouts.values()}
    assert layouts == {str(TokenLayout(3, 2)), str(TokenLayout(2, 5))}


def test_images_of_any_size():
    model = patch_model(build("swin_v2_pretrained"), "swin")
    plain = build("swin_v2_pretrained")
    for size in [(12, 20), (24, 28), (16, 12)]:
        assert_close(model(images(size=size)), plain(images(size=size)))


@every
def test_it_comes_back_bit_for_bit(name):
    model, x = build(name), images()
    before, expected, classes = snapshot(model), model(x), [type(m) for m in model.modules()]
    keys = list(model.state_dict())
    patch_model(model, "cpb+irpe")
    assert [key for key in model.state_dict() if ".posenc." not in key] == keys
    posenc.unpatch_model(model)
    assert torch.equal(model(x), expected)
    assert [type(m) for m in model.modules()] == classes
    assert snapshot(model) == before


@every
def test_copies(name, tmp_path):
    model, x = randomize_encodings(patch_model(build(name), "cpb+irpe")), images()
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), expected)
        assert all("Posenc" in type(module).__name__ for module in attentions(twin))
    torch.save(model, tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), expected)


@every
def test_a_replay_of_checkpointing(name):
    model, x = randomize_encodings(patch_model(build(name), "cpb")), images()
    expected = gradients(model, x)
    model.set_grad_checkpointing(True)
    for actual, wanted in zip(gradients(model, x), expected, strict=True):
        assert_close(actual, wanted)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(name, dtype):
    """Padding makes keys of length zero, whose square root has no place for an epsilon."""
    exact = build(name)(images())
    model = patch_model(build(name).to(dtype), "swin")
    out = model(images(dtype=dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=0.1, atol=0.1)


@every
def test_autocast_is_near(name):
    exact = build(name)(images())
    model = patch_model(build(name).float(), "swin")
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images(dtype=torch.float32))
    torch.testing.assert_close(out.double(), exact, rtol=0.1, atol=0.1)


@every
def test_capture_in_training_changes_nothing(name):
    model, x = build(name).train(), images()  # a part of CR drops in training
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        with capture_attention(model) as captured:
            assert torch.equal(model(x), expected)
    assert len(captured.attention) == 4
    for weights in captured.attention.values():
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [NAMES[0], NAMES[-1]])  # one of each class
@pytest.mark.filterwarnings("ignore")  # of torch's own code while it traces
def test_compiles_as_one_graph_and_exports(name):
    model, x = randomize_encodings(patch_model(build(name), "cpb+irpe")), images()
    torch.compiler.reset()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), expected)
        batch = {"x": {0: torch.export.Dim("batch", min=2, max=8)}}
        program = torch.export.export(model, (x,), dynamic_shapes=batch)
        assert_close(program.module()(images(batch=3)), model(images(batch=3)))


class OwnForward(WindowAttention):
    def forward(self, x, mask=None):
        return super().forward(x, mask)


class OwnName(WindowAttention):
    pass


def with_attention(cls):
    model = build("swin_v2")
    for module in attentions(model):
        module.__class__ = cls
    return model


def test_a_forward_of_its_own_is_refused():
    model = with_attention(OwnForward)
    before = snapshot(model)
    message = (
        r"layers.0.blocks.0.attn cannot be patched: OwnForward has a forward of its own, which"
    )
    with pytest.raises(ValueError, match=message):
        patch_model(model, "swin")
    assert snapshot(model) == before
    assert not posenc.supports(model)


def test_a_subclass_without_one_is_not():
    model, expected = with_attention(OwnName), build("swin_v2")(images())
    assert_close(patch_model(model, "swin")(images()), expected)


def test_an_encoding_of_one_grid_is_refused():
    with pytest.raises(ValueError, match="acts on the tokens of one grid, and SwinTransformerV2"):
        patch_model(build("swin_v2"), "peg")


def test_training_by_the_encodings_alone():
    model = posenc.train_only_encodings(patch_model(build("swin_v2"), "cpb")).train()
    model(images()).square().sum().backward()
    heads = [p for name, p in posenc.encoding_parameters(model) if name.endswith("head_weight")]
    assert len(heads) == 4
    assert all(weight.grad.abs().max() > 0 for weight in heads)
    assert model.get_parameter("layers.0.blocks.0.attn.logit_scale").grad is None
