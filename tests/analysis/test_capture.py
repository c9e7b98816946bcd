"""Captured attention against attention written out, and what a context must leave alone."""

import contextlib
import copy
import io
import pickle

import dynamic_vit
import oracles
import pytest
import tiny_global
import tiny_windowed
import torch
from eager_attention import biased_attention, heads_first
from expected_bias import BIAS
from tiny_vit import eager, images, snapshot, vit
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import posenc
from posenc import TokenLayout, patch_model, patched_encodings, unpatch_model
from posenc.analysis import capture_attention
from posenc.attention import attend, attention_matrix

NAMES = ["blocks.0.attn", "blocks.1.attn"]
OPTIONS = {
    "irpe": {},
    "swin": {"prefix_pairs": "separate"},
    "quadratic": {"strength": 0.0},
    "human_part": {},
    "learned": {},
    "sinusoidal": {"strength": 0.0},
    "peg": {},
}
DEFAULTS = {**OPTIONS, "swin": {}}  # which `expected_bias` writes out
PREFIXES = [0, 1, 2, 5]
some_models = pytest.mark.parametrize("encoding", [None, "swin", "peg", "irpe"])


def patched(encoding, model=None, scale=0.3, **options):
    """With random encodings; as it is with encoding None."""
    model = model or vit()
    if encoding is None:
        return model
    patch_model(model, encoding, **{**DEFAULTS.get(encoding, {}), **options})
    for seed, module in enumerate(patched_encodings(model).values()):
        oracles.randomise(module, seed + 1, scale)
    return model


def assert_close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same(one, other):
    assert list(one) == list(other)
    for key in one:
        assert torch.equal(one[key], other[key]), key


def written_out(model, x, encoding):
    """(attention, bias) of each module in `tiny_vit.eager`, and the logits."""
    layout = (3, 5, model.num_prefix_tokens)
    encodings = patched_encodings(model) if encoding else {}
    scale, attention, biases = 8**-0.5, {}, {}

    def bias(name, q, k):
        own = 0.0
        if encoding in BIAS:
            own = BIAS[encoding](encodings[f"{name}.{encoding}"], q, layout, scale)
            biases[name] = own
        attention[name] = (scale * q @ k.transpose(-2, -1) + own).softmax(-1)
        return own

    def position(tokens):
        if encoding == "learned":
            return tokens + encodings["learned"].table
        if encoding == "sinusoidal":
            table = oracles.sincos(*layout, tokens.shape[-1], "mae")
            return tokens + encodings["sinusoidal"].strength * table
        return tokens

    def after(index, tokens):
        module = encodings.get(f"blocks.{index}.peg")
        return (
            tokens if module is None else oracles.peg(tokens, module.weight, module.bias, *layout)
        )

    with torch.no_grad():
        logits = eager(model, x, bias, position, after)
    return attention, biases, logits


# What is recorded


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("encoding", [None, *OPTIONS])
def test_attention_and_bias_are_those_written_out(encoding, prefix):
    model = patched(encoding, vit(prefix))
    x = images(model, batch=3)
    with torch.no_grad(), capture_attention(model) as captured:
        logits = model(x)
    attention, biases, expected = written_out(model, x, encoding)
    assert_close(logits, expected)
    assert list(captured.attention) == NAMES
    tokens = prefix + 15
    for name in NAMES:
        assert captured.attention[name].shape == (3, 2, tokens, tokens)
        assert_close(captured.attention[name], attention[name])
    assert captured.layouts == dict.fromkeys(NAMES, TokenLayout(3, 5, prefix))
    assert captured.left_out == {}
    assert list(captured.bias) == list(biases)
    for name, bias in captured.bias.items():
        # Up to a constant per query.
        difference = bias - biases[name]
        assert_close(difference, difference[..., :1].expand_as(difference))
        assert bias.shape[0] == (3 if encoding == "irpe" else 1)


@pytest.mark.parametrize("encoding", [None, "irpe", "swin"])
def test_nothing_has_a_graph_and_half_precision_becomes_float32(encoding):
    model = patched(encoding).to(torch.bfloat16)
    with capture_attention(model) as captured:
        model(images(model))
    for tensor in [*captured.attention.values(), *captured.bias.values()]:
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


@pytest.mark.parametrize("encoding", ["irpe", "human_part", None])
def test_autocast_is_recorded_in_float32_from_the_queries_as_they_are(encoding):
    model = patched(encoding, vit(dtype=torch.float32))
    x = images(model)
    with torch.no_grad():
        with capture_attention(model) as exact:
            model(x)
        with torch.autocast("cpu", torch.bfloat16), capture_attention(model) as captured:
            model(x)
    for name in NAMES:
        assert captured.attention[name].dtype == torch.float32
        sums = captured.attention[name].sum(-1)
        assert_close(sums, torch.ones_like(sums), 1e-5)  # 16-bit rows sum to 1 within 4e-3
        assert_close(captured.attention[name], exact.attention[name], 0.1)
    if encoding == "human_part":
        assert_same(captured.bias, exact.bias)


def test_several_encodings_add_up_and_value_tables_are_no_bias():
    model = patched("swin+irpe", irpe={"mode": "bias"})
    x = images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    for name in NAMES:
        q = k = torch.zeros(1, 2, 16, 8, dtype=torch.float64)
        parts = [
            patched_encodings(model)[f"{name}.{part}"](q, k, TokenLayout(3, 5, 1))[0].dense()
            for part in ("swin", "irpe")
        ]
        assert_close(captured.bias[name], parts[0] + parts[1])
    model = patched("irpe", on="v")
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    assert list(captured.attention) == NAMES
    assert captured.bias == {}


def test_a_captured_bias_is_a_copy():
    model = posenc.fold_biases(patched("swin").eval())
    x = images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        before = model(x)
        for bias in captured.bias.values():
            bias.fill_(torch.nan)
        assert torch.equal(model(x), before)


def test_attention_is_that_before_dropout():
    model = patched("swin", vit(attn_drop_rate=0.5))
    x = images(model)
    with torch.no_grad():
        with capture_attention(model) as expected:
            model(x)
        model.blocks[0].train()
        with capture_attention(model) as captured:
            model(x)
    assert torch.equal(captured.attention[NAMES[0]], expected.attention[NAMES[0]])
    assert not torch.equal(captured.attention[NAMES[1]], expected.attention[NAMES[1]])


def test_the_latest_forward_is_kept():
    model = patched("irpe")
    with torch.no_grad():
        with capture_attention(model) as captured:
            model(images(model, batch=4, seed=1))
            model(images(model, batch=2, seed=2))
        with capture_attention(model) as expected:
            model(images(model, batch=2, seed=2))
        model(images(model, seed=3))
    assert_same(captured.attention, expected.attention)
    assert_same(captured.bias, expected.bias)


def test_some_blocks_are_patched():
    model = patched("swin", blocks=[1])
    x = images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    encoding = patched_encodings(model)["blocks.1.attn.swin"]
    bias = oracles.swin_bias(encoding.table, 3, 5, 1)
    with (
        torch.no_grad(),
        biased_attention(model, lambda name, q, k: bias if name == NAMES[1] else 0.0) as calls,
    ):
        unpatch_model(model)(x)
    assert list(captured.attention) == NAMES
    assert list(captured.bias) == [NAMES[1]]
    for call, own in zip(calls, [0.0, bias], strict=True):
        expected = (8**-0.5 * call.q @ call.k.transpose(-2, -1) + own).softmax(-1)
        assert_close(captured.attention[call.name], expected)


def test_names_are_those_of_the_model_that_was_passed():
    for encoding in (None, "swin", "peg"):
        whole = nn.ModuleDict({"vision": patched(encoding)})
        with torch.no_grad(), capture_attention(whole) as captured:
            whole["vision"](images(whole["vision"]))
        assert list(captured.attention) == [f"vision.{name}" for name in NAMES]
        assert list(captured.layouts) == list(captured.attention)


@pytest.mark.parametrize("block", ["ParallelScalingBlock", "ParallelThingsBlock"])
@pytest.mark.parametrize("encoding", [None, "peg", "swin"])
def test_parallel_blocks(block, encoding):
    from timm.models import vision_transformer

    model = patched(encoding, vit(block_fn=getattr(vision_transformer, block)))
    x = images(model)
    attention, _, expected = written_out(model, x, encoding)
    with torch.no_grad(), capture_attention(model) as captured:
        assert_close(model(x), expected)
    assert list(captured.attention) == list(attention)
    for name in attention:
        assert_close(captured.attention[name], attention[name])


# Other models: every family, not patched and patched


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
    expected = expected_attention(model, x, 1.0 if name == "gemma" else None)
    for site, sees in case.sites.items():
        assert captured.layouts[site] == TokenLayout(*sees.layout)
        assert_close(captured.attention[site], expected[site], 1e-9)


@pytest.mark.parametrize(
    "name", ["windows swin", "windows maxvit", "windows nest", "sam", "vit_diff"]
)
def test_families_that_are_patched(name):
    model, x, case = every_model(name)
    patch_model(model, "swin", blocks=lambda site: site in case.sites)
    tables = {}
    for seed, (site, encoding) in enumerate(patched_encodings(model).items()):
        oracles.randomise(encoding, seed)
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
        scores = call.q @ call.k.transpose(-2, -1) * call.q.shape[-1] ** -0.5 + mask
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
        model = oracles.randomise(model, 7, 0.3).double().eval()
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
    attention = oracles.randomise(nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    x = torch.randn(2, 16, 8)
    with torch.no_grad(), capture_attention(attention, layout=TokenLayout(3, 5, 1)) as captured:
        attention(x, x, x, need_weights=False)
    assert list(captured.attention) == ["MultiheadAttention"]
    expected = attention(x, x, x, average_attn_weights=False)[1]
    assert_close(captured.attention["MultiheadAttention"], expected.detach(), 1e-5)


# What a context leaves alone


def training_run(model, context):
    """Loss, gradients and random state of a step in training, with dropout."""
    torch.manual_seed(3)
    model.train().zero_grad()
    with context():
        loss = model(images(model)).square().mean()
        loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "state": torch.get_rng_state(), **gradients}


DROPOUT = {"attn_drop_rate": 0.3, "proj_drop_rate": 0.3, "drop_path_rate": 0.3}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("encoding", [None, "peg", *BIAS])
def test_training_is_bit_identical(encoding, fused, autocast):
    model = patched(encoding, vit(**DROPOUT, dtype=torch.float32))
    for block in model.blocks:
        block.attn.fused_attn = fused or encoding in BIAS
    runs = []
    for context in (contextlib.nullcontext, lambda: capture_attention(model)):
        # One autocast each: the casts that it remembers would reach the second run.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            runs.append(training_run(model, context))
    expected, actual = runs
    assert_same(actual, expected)
    assert any(value.any() for name, value in actual.items() if "qkv" in name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("encoding", [None, "irpe"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_activation_checkpointing_is_bit_identical(encoding, dynamic, reentrant, monkeypatch):
    monkeypatch.setenv("TIMM_REENTRANT_CKPT", str(int(reentrant)))
    model = patched(encoding, vit(**DROPOUT, dynamic_img_size=dynamic))
    expected = training_run(model, contextlib.nullcontext)
    model.set_grad_checkpointing()
    assert_same(training_run(model, lambda: capture_attention(model)), expected)


def test_replays_are_not_recorded():
    model = patched("irpe").train()
    model.set_grad_checkpointing()
    with capture_attention(model) as captured:
        loss = model(images(model, seed=1)).sum()
        model(images(model, seed=2))
        kept = dict(captured.attention)
        loss.backward()
    assert all(captured.attention[name] is kept[name] for name in NAMES)


@some_models
def test_afterwards_the_model_is_as_it_was(encoding):
    model = patched(encoding)
    before = snapshot(model)
    x = images(model)
    observers = [m._posenc.observers for m in model.modules() if "_posenc" in vars(m)]
    with torch.no_grad(), capture_attention(model):
        model(x)
        assert {**snapshot(model), "classes": None} == {**before, "classes": None}
    assert snapshot(model) == before
    with pytest.raises(ZeroDivisionError, match="by zero"), capture_attention(model):
        1 / (model(x).shape[0] - len(x))
    assert snapshot(model) == before
    with pytest.raises(AssertionError, match="Input width"), capture_attention(model):
        model(x[..., :-4])
    assert snapshot(model) == before
    after = [m._posenc.observers for m in model.modules() if "_posenc" in vars(m)]
    assert after == observers
    assert not any(observers)


@some_models
def test_nothing_is_recorded_before_and_after(encoding):
    model = patched(encoding)
    x = images(model)
    with torch.no_grad():
        model(x)
        with capture_attention(model) as captured:
            assert captured.attention == {}
            assert captured.layouts == {}
        model(x)
    assert captured.attention == {}


@some_models
def test_random_numbers_are_left_alone(encoding):
    model = patched(encoding)
    state = torch.get_rng_state()
    with torch.no_grad(), capture_attention(model):
        model(images(model))
    assert torch.equal(torch.get_rng_state(), state)


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", [by_deepcopy, by_pickle, by_file])
@some_models
def test_copies_made_inside_neither_record_nor_differ(encoding, make):
    model = patched(encoding)
    before, x = snapshot(model), images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        outputs = model(x)
        kept = dict(captured.attention)
        twin = make(model)
        assert torch.equal(twin(x), outputs)
        assert not any(m._posenc.observers for m in twin.modules() if "_posenc" in vars(m))
    assert all(captured.attention[name] is kept[name] for name in NAMES)
    same = {**snapshot(twin), "identities": None}
    assert same == {**before, "identities": None}
    with torch.no_grad(), capture_attention(twin) as own:
        assert torch.equal(twin(x), outputs)
    assert_same(own.attention, captured.attention)
    if encoding is not None:
        unpatch_model(twin)
        assert not any("Posenc" in type(module).__name__ for module in twin.modules())


@some_models
def test_contexts_can_be_nested(encoding):
    model = patched(encoding)
    before, x = snapshot(model), images(model)
    with torch.no_grad(), capture_attention(model) as outer:
        with capture_attention(model) as inner:
            model(x)
        assert_same(outer.attention, inner.attention)
        model(images(model, seed=2))
    assert snapshot(model) == before
    assert not torch.equal(outer.attention[NAMES[0]], inner.attention[NAMES[0]])
    assert list(outer.bias) == list(inner.bias)


def test_a_frozen_model_is_recorded():
    model = patched("swin+human_part").eval()
    x = images(model)
    with torch.no_grad():
        with capture_attention(model) as expected:
            model(x)
        posenc.fold_biases(model)
        with capture_attention(model) as captured:
            model(x)
    for name in NAMES:
        assert_close(captured.attention[name], expected.attention[name])
        assert_close(captured.bias[name], expected.bias[name])


def test_a_shared_encoding_and_every_backend():
    x = images(vit())
    for backend in ("reference", "sdpa", "lowrank", "tiled", "auto"):
        model = patched("swin", share=True, backend="auto" if backend == "lowrank" else backend)
        with torch.no_grad():
            outputs = model(x)
            with capture_attention(model) as captured:
                assert torch.equal(model(x), outputs)
        bias = oracles.swin_bias(patched_encodings(model)["swin"].table, 3, 5, 1)
        assert_close(captured.bias[NAMES[1]], bias.detach())


# Errors


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoding", [None, "swin"])
def test_a_compiled_model_is_refused(encoding):
    torch.compiler.reset()
    model = patched(encoding)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"the model is compiled.*what went into"):
        capture_attention(compiled).__enter__()
    x = images(model)
    with torch.no_grad():
        expected = compiled(x)
        with (
            pytest.raises(RuntimeError, match=r"blocks\.0\.attn runs under torch\.compile"),
            capture_attention(model),
        ):
            compiled(x)
        with capture_attention(model) as captured:
            model(x)
        assert torch.equal(compiled(x), expected)
    assert list(captured.attention) == NAMES
    model.blocks[1].compile(backend="eager")
    with pytest.raises(ValueError, match=r"blocks\.1 is compiled.*before model\.compile"):
        capture_attention(model).__enter__()
    torch.compiler.reset()


@pytest.mark.parametrize("encoding", [None, "swin"])
def test_function_transforms_are_refused(encoding):
    model = patched(encoding)
    x = images(model)
    parameters = dict(model.named_parameters())
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="a function transform"),
        capture_attention(model),
    ):
        vmap(lambda image: functional_call(model, parameters, image[None]))(x)
    with torch.no_grad(), capture_attention(model) as captured:
        functional_call(model, parameters, x)
    assert list(captured.attention) == NAMES


def test_models_that_are_not_known_are_refused():
    for model, message in [
        (nn.Linear(2, 3), "found no model that posenc knows"),
        (tiny_windowed.build("hiera_unrolled"), r"no attention that can be recorded \(blocks\.0"),
        (nn.MultiheadAttention(8, 2), "pass layout="),
    ]:
        with pytest.raises(ValueError, match=message):
            capture_attention(model).__enter__()


def test_a_patched_model_knows_its_layout():
    with pytest.raises(ValueError, match=r"layout=3x5 \+ 1 prefix was passed.*leave layout= out"):
        capture_attention(patched("swin"), layout=TokenLayout(3, 5, 1)).__enter__()


def test_inside_a_model_is_not_unpatched():
    model = patched("swin")
    before = snapshot(model)
    with (
        capture_attention(model),
        pytest.raises(ValueError, match="not the class that patch_model gave it"),
    ):
        unpatch_model(model)
    assert snapshot(model) == before
    plain = vit()
    with capture_attention(plain), pytest.raises(ValueError, match="cannot be patched"):
        patch_model(plain, "swin")


def test_dropped_tokens_are_an_error():
    model = vit(patch_drop_rate=0.5).train()
    message = r"got \d+ tokens, but its layout 3x5 \+ 1 prefix"
    with pytest.raises(RuntimeError, match=message), capture_attention(model):
        model(images(model))
    assert snapshot(model)["classes"] == snapshot(vit(patch_drop_rate=0.5))["classes"]


# The weights of `attend`


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("encoding", ["irpe", "swin", "human_part"])
def test_attention_matrix_is_what_multiplies_the_values(encoding, prefix):
    layout = TokenLayout(3, 5, prefix)
    module = posenc.create_encoding(encoding, layout=layout, num_heads=2, head_dim=4)
    module = oracles.randomise(module.double())
    q, k, v, _ = oracles.random_qkv(layout.num_tokens)
    mask = torch.randn(2, 1, layout.num_tokens, layout.num_tokens, dtype=torch.float64)
    for options in ({}, {"scale": 0.7}, {"attn_mask": mask}, {"attn_mask": mask > -1}):
        terms = module(q, k, layout, scale=options.get("scale"))
        weights = attention_matrix(q, k, v, terms, **options)
        expected = attend(q, k, v, terms, backend="sdpa", **options)
        assert_close(weights @ v, expected)
        bias = BIAS[encoding](module, q, (3, 5, prefix), options.get("scale", 0.5))
        _, rows = oracles.attention(q, k, v, bias, options.get("attn_mask"), options.get("scale"))
        assert_close(weights, rows)


def test_attention_matrix_without_terms_is_that_of_sdpa():
    q = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 5, 3, dtype=torch.float64)
    grouped = {"is_causal": True, "enable_gqa": True}
    with sdpa_kernel(SDPBackend.MATH):
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, **grouped)
    weights = attention_matrix(q, k, v, **grouped)
    assert_close(weights @ v.repeat_interleave(2, 1), expected)
    assert torch.equal(weights, weights.tril())


def test_attention_matrix_checks_its_arguments():
    q = torch.zeros(1, 2, 16, 4)
    with pytest.raises(ValueError, match="key must be"):
        attention_matrix(q, q[0], q)
    with pytest.raises(TypeError, match="pass encoding"):
        attention_matrix(q, q, q, posenc.SwinBias(TokenLayout(3, 5, 1), 2))
    assert attention_matrix(q.half(), q.half(), q.half()).dtype == torch.float32


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
