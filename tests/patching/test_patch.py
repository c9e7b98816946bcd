import contextlib
import copy
import functools
import itertools
import warnings

import oracles
import pytest
import torch
from timm.layers import Attention, set_fused_attn
from timm.models.vision_transformer import Block
from tiny_vit import MODELS, eager, images, snapshot, vit
from torch import nn

import posenc
from posenc import (
    IRPE,
    AttentionEncoding,
    SwinBias,
    TokenEncoding,
    TokenLayout,
    patch_model,
    patched_encodings,
    unpatch_model,
)
from posenc.terms import DenseBias

# Options with which each encoding starts without effect.
SILENT = {
    "irpe": {},
    "swin": {},
    "human_part": {},
    "learned": {},
    "peg": {},
    "quadratic": {"strength": 0.0},
    "sinusoidal": {"strength": 0.0},
}


def randomise_encodings(model, scale=0.3):
    for seed, encoding in enumerate(patched_encodings(model).values()):
        oracles.randomise(encoding, seed, scale)
    return model


@functools.cache
def irpe_map(layout):
    tokens = range(oracles.num_tokens(*layout))
    entries = [
        [oracles.irpe_bucket(i, j, layout[1], layout[2], "product", 1.9, "shared") for j in tokens]
        for i in tokens
    ]
    return torch.tensor(entries)


def irpe_bias(encoding, q, layout):
    lookup = q / q.shape[-1] ** 0.5 @ encoding.table_k
    return torch.gather(lookup, -1, irpe_map(layout).expand(*q.shape[:3], -1))


BIAS = {
    "irpe": lambda e, q, layout: irpe_bias(e, q, layout),
    "swin": lambda e, q, layout: oracles.swin_bias(e.table, *layout),
    "quadratic": lambda e, q, layout: oracles.quadratic_bias(
        e.centers, e.alpha, e.strength, *layout
    ),
    "human_part": lambda e, q, layout: oracles.human_part_bias(dict(e.named_parameters()), *layout),
}


def expected_logits(model, names, layout, x):
    """The model written out, with the encodings `names` from the papers' formulas."""
    found = patched_encodings(model)
    names = names.split("+")

    def bias(site, q, k):
        return sum(BIAS[n](found[f"{site}.{n}"], q, layout) for n in names if n in BIAS)

    def position(tokens):
        for name in names:
            if name == "sinusoidal":
                table = oracles.sincos(*layout, 16, "mae")
                tokens = tokens + found[name].strength * table
            elif name == "learned":
                tokens = tokens + found[name].table
        return tokens

    def after(index, tokens):
        encoding = found.get(f"blocks.{index}.peg")
        if encoding is None:
            return tokens
        return oracles.peg(tokens, encoding.weight, encoding.bias, *layout)

    with torch.no_grad():
        return eager(model, x, bias, position, after)


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


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("name", SILENT)
def test_equals_the_papers_formula(name, case):
    options, layout = MODELS[case]
    model = vit(**options)
    x = images(model)
    before = model(x)
    randomise_encodings(patch_model(model, name, **SILENT[name]))
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
    model = randomise_encodings(patch_model(vit(**options), names, **each))
    x = images(model)
    expected = expected_logits(model, names, layout, x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


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


@pytest.mark.parametrize("case", ["cls", "no_prefix", "parallel_scaling", "parallel_things"])
@pytest.mark.parametrize("name", [*SILENT, "peg+irpe+learned"])
@pytest.mark.parametrize("share", [False, True])
def test_unpatch_is_bit_exact(name, case, share):
    model = vit(**MODELS[case][0])
    x = images(model)
    expected, before = model(x), snapshot(model)
    each = {n: SILENT[n] for n in name.split("+")}
    randomise_encodings(patch_model(model, name, share=share, **each))
    with torch.no_grad():
        model(x)
    assert unpatch_model(model) is model
    assert snapshot(model) == before
    assert torch.equal(model(x), expected)


def train(model, steps=2):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        model(images(model, seed=step)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("absolute", ["keep", "remove"])
def test_unpatch_after_training_keeps_the_trained_weights(absolute):
    model, twin = vit(5), vit(5)
    table = model.pos_embed.clone()
    before = {**snapshot(model), "values": None}
    patch_model(model, "peg+irpe+learned", absolute=absolute)
    model.train()
    train(model)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert torch.equal(model.pos_embed, table) == (absolute == "hide")
    unpatch_model(model.eval())
    assert {**snapshot(model), "values": None} == before
    twin.load_state_dict(model.state_dict())
    x = images(model)
    assert torch.equal(model(x), twin(x))


def test_unpatch_restores_flags():
    model = vit()
    model.blocks[0].attn.fused_attn = False
    model.pos_embed.requires_grad_(False)
    before = snapshot(model)
    patch_model(model, "irpe+learned", absolute="hide")
    assert model.blocks[0].attn.fused_attn is True
    unpatch_model(model)
    assert snapshot(model) == before


def test_a_site_with_its_flag_off_is_switched_on():
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    randomise_encodings(patch_model(model, "swin"))
    x = images(model)
    expected = expected_logits(model, "swin", (3, 5, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_unpatch_refuses_a_changed_class():
    model = patch_model(vit())
    model.blocks[1].attn.__class__ = type("Wrapped", (type(model.blocks[1].attn),), {})
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"blocks.1.attn is a Wrapped, not the class"):
        unpatch_model(model)
    assert snapshot(model) == before


def test_blocks_that_are_gone():
    """timm's own pruning, as for feature extraction."""
    model, twin = vit(depth=3), vit(depth=3)
    patch_model(model, "peg+swin", after=(0, 2))
    for each in (model, twin):
        each.prune_intermediate_layers([1], prune_norm=False)
    assert len(model.blocks) == 2
    assert "blocks.2.attn" not in str(posenc.summary(model))
    unpatch_model(model)
    assert snapshot(model) == {**snapshot(twin), "identities": snapshot(model)["identities"]}


def test_unpatch_refuses_an_unpatched_model():
    with pytest.raises(ValueError, match=r"VisionTransformer is not patched; call posenc.patch_"):
        unpatch_model(vit())


# Which sites


def sites(model):
    return sorted(posenc.encoding_config(model)["sites"])


SELECTIONS = [
    (None, [0, 1, 2]),
    (slice(1, None), [1, 2]),
    (slice(None, None, 2), [0, 2]),
    ([0, 2], [0, 2]),
    ((1,), [1]),
    ([-1], [2]),
    (1, [1]),
    (lambda name: name.endswith("1.attn"), [1]),
]


@pytest.mark.parametrize(("blocks", "chosen"), SELECTIONS)
@pytest.mark.parametrize("share", [False, True])
def test_blocks(blocks, chosen, share):
    model = patch_model(vit(depth=3), "swin", blocks=blocks, share=share)
    assert sites(model) == [f"blocks.{index}.attn" for index in chosen]
    assert [type(block.attn) is not Attention for block in model.blocks] == [
        index in chosen for index in range(3)
    ]
    randomise_encodings(model)
    found = patched_encodings(model)

    def bias(name, q, k):
        key = "swin" if share else f"{name}.swin"
        if name not in sites(model):
            return 0.0
        return oracles.swin_bias(found[key].table, 3, 5, 1)

    x = images(model)
    torch.testing.assert_close(model(x), eager(model, x, bias), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([3], r"blocks=\[3\]: 3 is not an index of the model's 3 attention modules"),
        ([-4], "-4 is not an index of the model's 3"),
        ([0, "1"], "blocks must be None, indices, a slice or a predicate"),
        ([], r"blocks=\[\] selects none of the 3 attention modules: blocks.0.attn ... blocks.2"),
        (slice(3, 5), r"blocks=slice\(3, 5, None\) selects none"),
        (lambda name: False, "selects none of the 3 attention modules"),
    ],
)
def test_blocks_that_select_nothing(blocks, message):
    model = vit(depth=3)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        patch_model(model, blocks=blocks)
    assert snapshot(model) == before


def test_sites_of_parallel_blocks():
    model = patch_model(vit(**MODELS["parallel_things"][0]))
    assert sites(model) == [f"blocks.{b}.attns.{p}.attn" for b in (0, 1) for p in (0, 1)]
    model = patch_model(vit(**MODELS["parallel_scaling"][0]), "peg+irpe", blocks=[0])
    assert sites(model) == ["blocks.0"]
    assert set(patched_encodings(model)) == {"blocks.0.peg", "blocks.0.irpe"}


def test_after():
    model = patch_model(vit(depth=3), "peg", after=(0, -1))
    assert set(patched_encodings(model)) == {"blocks.0.peg", "blocks.2.peg"}
    randomise_encodings(model)
    x = images(model)
    expected = expected_logits(model, "peg", (3, 5, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ((2,), r"after=\(2,\) names block 2, but the model has 2 blocks \(0 to 1\)"),
        ((1, -1), r"names block -1 twice"),
        ((0, 0), "must not repeat a block"),
        ((), "must be block indices such as"),
        ("ab", "must be block indices such as"),
    ],
)
def test_after_that_does_not_fit(after, message):
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        patch_model(model, "peg", after=after)
    assert snapshot(model) == before


# share=True


@pytest.mark.parametrize("names", ["irpe", "swin", "peg+irpe"])
def test_shared_encodings_are_registered_once(names):
    model = vit(depth=3)
    old = list(model.state_dict())
    options = {"peg": {"after": (0, 2)}} if "peg" in names else {}
    patch_model(model, names, share=True, **options)
    new = [key for key in model.state_dict() if key not in old]
    assert {tuple(key.split(".")[:2]) for key in new} == {("posenc", n) for n in names.split("+")}
    assert list(patched_encodings(model)) == sorted(patched_encodings(model), key=names.find)
    assert set(patched_encodings(model)) == set(names.split("+"))
    assert [name for name, _ in posenc.encoding_parameters(model)] == new


@pytest.mark.parametrize("name", ["irpe", "swin"])
def test_shared_gradients_are_summed(name):
    shared = randomise_encodings(patch_model(vit(depth=3), name, share=True))
    single = patch_model(vit(depth=3), name)
    values = patched_encodings(shared)[name].state_dict()
    for encoding in patched_encodings(single).values():
        encoding.load_state_dict(values)
    x = images(shared)
    for model in (shared, single):
        model(x).square().sum().backward()
    torch.testing.assert_close(shared(x), single(x), rtol=1e-12, atol=1e-12)
    total = sum(next(e.parameters()).grad for e in patched_encodings(single).values())
    assert total.abs().max() > 1e-3
    (parameter,) = patched_encodings(shared)[name].parameters()
    torch.testing.assert_close(parameter.grad, total, rtol=1e-10, atol=1e-10)


# What `encoding` may be


def custom(layout, num_heads, head_dim, embed_dim, *, fill=0.0):
    assert (layout, num_heads, head_dim, embed_dim) == (TokenLayout(3, 5, 1), 2, 8, 16)
    encoding = SwinBias(layout, num_heads)
    nn.init.constant_(encoding.table, fill)
    return encoding


class Constant(AttentionEncoding):
    """A user's own encoding: one number per head for every pair on the diagonal."""

    def __init__(self, layout, num_heads, head_dim=None, *, device=None, dtype=None):
        super().__init__(layout, num_heads, head_dim)
        self.weight = nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype))

    def terms(self, q, k, layout, scale):
        eye = torch.eye(layout.num_tokens, device=q.device, dtype=q.dtype)
        return (DenseBias(self.weight[None, :, None, None] * eye),)


class Shift(TokenEncoding):
    def __init__(self, layout, embed_dim, *, device=None, dtype=None):
        super().__init__(layout, embed_dim)
        self.shift = nn.Parameter(torch.zeros(embed_dim, device=device, dtype=dtype))

    def encode(self, x, layout):
        return x + self.shift


@pytest.mark.parametrize(
    ("encoding", "options", "names"),
    [
        ("irpe", {}, {"irpe"}),
        (" peg + irpe ", {}, {"peg", "irpe"}),
        (IRPE, {"mode": "bias"}, {"irpe"}),
        (["peg", SwinBias, "irpe"], {}, {"peg", "swin", "irpe"}),
        (["peg+irpe", SwinBias], {}, {"peg", "swin", "irpe"}),
        (custom, {"fill": 2.0}, {"custom"}),
        (functools.partial(custom, fill=1.0), {}, {"partial"}),
        (lambda layout, *sizes: SwinBias(layout, sizes[0]), {}, {"custom"}),
        (Constant, {}, {"constant"}),
        ([Shift, Constant], {}, {"shift", "constant"}),
    ],
)
def test_kinds_of_encoding(encoding, options, names):
    model = vit()
    x = images(model)
    expected = model(x)
    patch_model(model, encoding, **options)
    assert {key.rpartition(".")[2] for key in patched_encodings(model)} == names
    assert {p.dtype for _, p in posenc.encoding_parameters(model)} == {torch.float64}
    randomise_encodings(model)
    assert not torch.allclose(model(x), expected, rtol=1e-3)
    unpatch_model(model)
    assert torch.equal(model(x), expected)


def test_own_encoding_equals_the_formula():
    model = randomise_encodings(patch_model(vit(), Constant))
    found = patched_encodings(model)
    x = images(model)

    def bias(name, q, k):
        weight = found[f"{name}.constant"].weight
        return weight[:, None, None] * torch.eye(16, dtype=torch.float64)

    torch.testing.assert_close(model(x), eager(model, x, bias), rtol=1e-10, atol=1e-10)


def test_options_go_to_their_encoding():
    options = {"irpe": {"mode": "bias", "init": "paper"}, "kernel_size": 5}
    model = patch_model(vit(), "peg+irpe", **options)
    found = patched_encodings(model)
    assert found["blocks.0.attn.irpe"].mode == "bias"
    assert found["blocks.0.peg"].kernel_size == 5
    assert options == {"irpe": {"mode": "bias", "init": "paper"}, "kernel_size": 5}


class OwnEmbedding(nn.Module):
    """Somebody's patch embedding: no grid_size, no dynamic_feat_size."""

    def __init__(self, embedding):
        super().__init__()
        self.proj, self.img_size = embedding.proj, embedding.img_size

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def without_grid_size():
    model = vit()
    model.patch_embed = OwnEmbedding(model.patch_embed)
    return model


# Bad input: an exception that says what to do, and the model as it was


def misfits():
    def share_sizes():
        model = vit()
        model.blocks[1].attn = Attention(16, 4).double()
        return model

    def renamed():
        model = vit()
        model.blocks[0].attn._attend = 3
        return model

    def hooked():
        model = vit()
        model.blocks[0].attn.forward = model.blocks[0].attn.forward
        return model

    def quantised():
        model = vit()
        model.cls_token = nn.Parameter(torch.zeros(1, 1, 16, dtype=torch.int8), requires_grad=False)
        return model

    return {
        "unknown name": (vit, {"encoding": "iprp"}, "unknown encoding 'iprp'. Did you mean 'irpe'"),
        "no close name": (
            vit,
            {"encoding": "zzz"},
            "unknown encoding 'zzz'. There are: sinusoidal",
        ),
        "unknown in sum": (
            vit,
            {"encoding": "peg+shwin"},
            "unknown encoding 'shwin'. Did you mean 'swin'",
        ),
        "empty": (vit, {"encoding": []}, "must name each encoding once, got none"),
        "repeated": (vit, {"encoding": "irpe+irpe"}, "each encoding once, got irpe, irpe"),
        "option": (
            vit,
            {"metod": "cross"},
            r"irpe has no option 'metod'\. Did you mean 'method'\?",
        ),
        "far option": (vit, {"zzz": 1}, "irpe has no option 'zzz'. Its options: mode, method"),
        "ambiguous": (
            vit,
            {"encoding": "peg+irpe", "init": "paper"},
            r"'init' is ambiguous, peg, irpe have it: .* peg=dict\(init='paper'\)",
        ),
        "nobody's option": (
            vit,
            {"encoding": "peg+irpe", "kernel_sise": 3},
            "none of peg, irpe has an option 'kernel_sise'. Did you mean 'kernel_size'",
        ),
        "nested option": (
            vit,
            {"encoding": "peg+irpe", "irpe": {"rato": 3}},
            "irpe has no option 'rato'. Did you mean 'ratio'",
        ),
        "refused option": (vit, {"mode": "bias", "on": "v"}, "bias mode on v does not exist"),
        "choice": (vit, {"method": "manhattan"}, "method must be one of 'product', .*'manhattan'"),
        "width": (
            lambda: vit(embed_dim=18),
            {"encoding": "sinusoidal"},
            "embed_dim must be a multiple of 4 .* got 18",
        ),
        "backend": (vit, {"backend": "flash"}, "unknown attention backend 'flash'"),
        "absolute": (vit, {"absolute": "hide"}, "absolute must be .* got 'hide'"),
        "no table": (
            lambda: vit(pos_embed="none"),
            {"encoding": "learned", "absolute": "hide"},
            "has no absolute position table",
        ),
        "table rows": (
            without_grid_size,
            {"encoding": "learned", "absolute": "hide", "layout": TokenLayout(2, 2, 1)},
            "table has 16 rows .*, the layout 2x2 \\+ 1 prefix has 5 tokens",
        ),
        "share": (share_sizes, {"share": True}, r"equal .* got \[\(2, 8, .*\), \(4, 4, .*\)\]"),
        "attribute": (renamed, {}, "blocks.0.attn already has an attribute '_attend'"),
        "hook": (
            hooked,
            {},
            "blocks.0.attn cannot be patched: its forward was replaced on the ins",
        ),
        "quantised": (quantised, {}, "has torch.int8 parameters: patch the floating point model"),
        "two": (
            lambda: nn.ModuleDict({"a": vit(), "b": vit()}),
            {},
            r"found 2 vision transformers \(a, b\): patch each by itself",
        ),
        "none": (
            lambda: nn.Sequential(nn.Linear(3, 3)),
            {},
            "found no model that posenc knows in Seq",
        ),
    }


@pytest.mark.parametrize("case", misfits())
def test_bad_input_leaves_the_model_untouched(case):
    build, arguments, message = misfits()[case]
    model = build()
    before = snapshot(model)
    rng = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        patch_model(model, **arguments)
    assert snapshot(model) == before
    assert not posenc.is_patched(model)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    ("encoding", "options", "message"),
    [
        (3, {}, r"encoding must be a name, .* got 3"),
        (nn.Linear, {}, "encoding must be a name, an encoding class, .* got <class"),
        (IRPE(TokenLayout(3, 5, 1), 2, 8), {}, "encoding must be a name"),
        (lambda *sizes: nn.Identity(), {}, "the callable must return a posenc.AttentionEncoding"),
        ("irpe", {"layout": (3, 5, 1)}, r"layout must be a posenc.TokenLayout.*got \(3, 5, 1\)"),
    ],
)
def test_bad_types_leave_the_model_untouched(encoding, options, message):
    model = vit()
    before = snapshot(model)
    with pytest.raises(TypeError, match=message):
        patch_model(model, encoding, **options)
    assert snapshot(model) == before


class WithoutAttention(nn.Module):
    def __init__(self, dim, **options):
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear(x)


class OwnAttention(Attention):
    def forward(self, x):
        return super().forward(x)


def test_a_model_without_attention():
    model = vit(block_fn=WithoutAttention)
    before = snapshot(model)
    with pytest.raises(ValueError, match="found no attention in the blocks of VisionTransformer"):
        patch_model(model, "irpe")
    assert snapshot(model) == before
    assert not posenc.supports(model)
    patch_model(model, "peg")  # needs none
    assert set(patched_encodings(model)) == {"blocks.0.peg"}


def test_refused_attention_can_be_left_out():
    model = vit(attn_layer=OwnAttention)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"blocks.0.attn cannot be patched: OwnAttention: .*its parent class"
    ):
        patch_model(model)
    assert snapshot(model) == before
    model.blocks[1] = vit(seed=3).blocks[1]
    patch_model(model, blocks=[1])
    assert sites(model) == ["blocks.1.attn"]


class Failing(SwinBias):
    """Fails at the second site."""

    built = itertools.count(0)

    def __init__(self, layout, num_heads, *, device=None, dtype=None):
        super().__init__(layout, num_heads, device=device, dtype=dtype)
        if next(self.built) == 2:
            raise RuntimeError("no more memory")


def test_a_failure_half_way_leaves_the_model_untouched():
    model = vit(depth=3)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no more memory"):
        patch_model(model, Failing)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["keys", "items", "pop", "float", "type"])
def test_an_awkward_name_leaves_no_half_patched_model(name):
    """A name that nn.ModuleDict has already: accepted or refused, but not half done."""

    def build(layout, num_heads, head_dim, embed_dim):
        return SwinBias(layout, num_heads)

    build.__name__ = name
    model = vit()
    before = snapshot(model)
    with contextlib.suppress(ValueError):  # a refusal is as good
        patch_model(model, build)
    if posenc.is_patched(model):
        assert set(patched_encodings(model)) == {f"blocks.{i}.attn.{name}" for i in (0, 1)}
        unpatch_model(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["irpe", "learned"])
def test_device_and_dtype_are_those_of_the_model(name):
    """Given as options, they are refused by name or obeyed."""
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match="dtype"):
        patch_model(model, name, dtype=torch.float32)
    assert snapshot(model) == before


def test_patching_twice():
    model = patch_model(vit(), "peg+irpe")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"already patched with peg, irpe; call posenc.unpatch_mo"):
        patch_model(model, "swin")
    assert snapshot(model) == before
    patch_model(unpatch_model(model), "swin")
    assert set(patched_encodings(model)) == {"blocks.0.attn.swin", "blocks.1.attn.swin"}


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.neck = nn.Linear(5, 3).double()
        self.backbone = vit()

    def forward(self, x):
        return self.neck(self.backbone(x))


@pytest.mark.parametrize("share", [False, True])
def test_a_wrapper_that_contains_a_vit(share):
    model = Wrapper()
    x = images(model.backbone)
    expected, before = model(x), snapshot(model)
    patch_model(model, "peg+swin+learned", share=share)
    assert posenc.is_patched(model)
    assert posenc.is_patched(model.backbone)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    names = [name for name, _ in posenc.encoding_parameters(model)]
    assert len(names) == (4 if share else 5)
    assert all(name.startswith("backbone.") for name in names)
    assert set(names) < set(model.state_dict())
    assert set(names) == set(posenc.encoding_state_dict(model))
    assert "learned" in patched_encodings(model)
    assert "sites:          VisionTransformer <- learned" in str(posenc.summary(model))
    with pytest.raises(ValueError, match="already patched"):
        patch_model(model)
    unpatch_model(model)
    assert snapshot(model) == before
    assert torch.equal(model(x), expected)


def test_two_vits_can_be_patched_one_by_one():
    pair = nn.ModuleDict({"a": vit(), "b": vit()})
    patch_model(pair["a"], "irpe")
    patch_model(pair["b"], "swin")
    assert {type(e) for e in patched_encodings(pair["b"]).values()} == {SwinBias}
    unpatch_model(pair["a"])
    assert posenc.is_patched(pair["b"])
    assert not posenc.is_patched(pair["a"])


def test_a_scripted_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated
        scripted = torch.jit.trace(nn.Linear(3, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"scripted or traced model .* patch the original model"):
        patch_model(scripted)
    assert "scripted or traced" in str(posenc.supports(scripted))


@pytest.mark.parametrize("thing", [None, "vit_tiny", vit])
def test_no_module(thing):
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got "):
        patch_model(thing)


def test_a_compiled_model():
    compiled = torch.compile(vit(), backend="eager")
    with pytest.raises(ValueError, match=r"already wrapped .OptimizedModule.* patch first"):
        patch_model(compiled)


@pytest.fixture
def fused_attention_off():
    from timm.layers import use_fused_attn

    before = use_fused_attn()
    set_fused_attn(False)
    yield
    set_fused_attn(before)


def test_the_global_flag_is_off(fused_attention_off):
    model = vit()
    assert model.blocks[0].attn.fused_attn is False
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"switched off globally .* call\s+timm.layers.set_fused_"):
        patch_model(model, "peg+irpe")
    assert snapshot(model) == before
    report = posenc.supports(model)
    assert not report
    assert "switched off globally" in str(report)
    patch_model(model, "peg")
    assert set(patched_encodings(model)) == {"blocks.0.peg"}


def test_the_global_flag_after_patching_changes_nothing(fused_attention_off):
    set_fused_attn(True)
    model = patch_model(vit())
    expected = model(images(model))
    set_fused_attn(False)
    assert torch.equal(model(images(model)), expected)


# Token counts


def test_dropped_tokens():
    model = patch_model(vit(patch_drop_rate=0.4)).train()
    with pytest.raises(
        RuntimeError, match=r"blocks.0.attn got 10 tokens, but its layout 3x5 \+ 1 prefix has 16"
    ):
        model(images(model))
    assert model.eval()(images(model)).shape == (2, 5)


@pytest.mark.parametrize(
    "layout", [TokenLayout(3, 4, 1), TokenLayout(5, 3, 1), TokenLayout(3, 5, 0)]
)
def test_a_layout_that_contradicts_the_model(layout):
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"layout=\d.* contradicts .* gives 3x5 \+ 1 prefix"):
        patch_model(model, layout=layout)
    assert snapshot(model) == before
    patch_model(model, layout=TokenLayout(3, 5, 1))


def test_an_embedding_without_grid_needs_the_layout():
    model = without_grid_size()
    with pytest.raises(ValueError, match=r"OwnEmbedding has no grid_size.* pass\s+layout=posenc"):
        patch_model(model)
    assert "has no grid_size" in str(posenc.supports(model))
    patch_model(model, "swin", layout=TokenLayout(5, 3, 1))  # an equal count, another grid
    randomise_encodings(model)
    x = images(model)
    expected = expected_logits(model, "swin", (5, 3, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["irpe", "peg", "learned", "swin"])
@pytest.mark.parametrize("layout", [TokenLayout(3, 4, 1), TokenLayout(3, 5, 0)])
def test_a_layout_that_does_not_fit_the_tokens(name, layout):
    model = patch_model(without_grid_size(), name, layout=layout)
    count = layout.num_tokens
    with pytest.raises(
        RuntimeError, match=rf"got 16 tokens, but its layout {layout.height}x.* {count}"
    ):
        model(images(model))


@pytest.mark.parametrize("names", ["irpe", "swin", "human_part", "peg", "learned", "sinusoidal"])
def test_set_input_size_is_followed(names):
    """Tables that depend on the grid are resampled; the stored ones stay."""
    model = randomise_encodings(patch_model(vit(), names, **SILENT[names]))
    stored = {key: value.clone() for key, value in posenc.encoding_state_dict(model).items()}
    small = model(images(model))
    model.set_input_size(img_size=(20, 12))
    assert model(images(model)).isfinite().all()
    assert posenc.summary(model).layout == TokenLayout(5, 3, 1)
    model.set_input_size(img_size=(12, 20))
    for key, value in posenc.encoding_state_dict(model).items():
        assert torch.equal(value, stored[key])
    assert small.isfinite().all()


# absolute="hide"


@pytest.mark.parametrize("case", ["cls", "distilled", "reg4", "no_embed_class", "no_prefix"])
def test_remove_hides_the_table(case):
    options, layout = MODELS[case]
    model = vit(**options)
    x = images(model)
    keys = list(model.state_dict())
    with pytest.warns(UserWarning, match="the model's position table is hidden$"):
        patch_model(model, "swin", absolute="hide")
    randomise_encodings(model)
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


# Random numbers, device, dtype, mode


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("irpe", {}),
        ("swin", {"init": "paper"}),
        ("peg", {"init": "paper"}),
        ("learned", {"init": "paper"}),
        ("quadratic", {"init": "normal"}),
        ("quadratic", {"init": "normal", "share": True}),
    ],
)
@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_random_state_is_untouched(names, options):
    model = vit(depth=3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    patch_model(model, names, **options)
    assert torch.equal(torch.get_rng_state(), before)
    unpatch_model(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_random_starts_follow_the_seed_and_differ_by_site():
    tables = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = patch_model(vit(), "swin", init="paper")
        tables += [encoding.table for encoding in patched_encodings(model).values()]
    assert torch.equal(tables[0], tables[2])
    assert torch.equal(tables[1], tables[3])
    assert not torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[4])


ALL = "+".join(SILENT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [False, True])
def test_new_modules_take_dtype_and_mode(dtype, share):
    for training in (True, False):
        model = vit(5, dtype=dtype).train(training)
        each = {name: SILENT[name] for name in SILENT if SILENT[name]}
        x = images(model)
        expected = model.eval()(x)
        patch_model(model.train(training), ALL, share=share, **each)
        for encoding in patched_encodings(model).values():
            assert {p.dtype for p in encoding.parameters()} == {dtype}
            assert all(module.training is training for module in encoding.modules())
        out = model.eval()(x)
        assert out.dtype == dtype
        # Five operations per layer that may round differently, two layers.
        tolerance = 20 * torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)


def test_mode_of_each_site():
    model = vit().eval()
    model.blocks[1].train()
    patch_model(model, "irpe")
    found = patched_encodings(model)
    assert not found["blocks.0.attn.irpe"].training
    assert found["blocks.1.attn.irpe"].training


def test_dtype_of_each_site():
    model = vit(dtype=torch.float32)
    model.blocks[1].double()
    patch_model(model, "irpe")
    found = patched_encodings(model)
    assert found["blocks.0.attn.irpe"].table_k.dtype == torch.float32
    assert found["blocks.1.attn.irpe"].table_k.dtype == torch.float64


def meta_vit():
    return vit().to("meta")


@pytest.mark.parametrize("share", [False, True])
def test_a_meta_model_stays_meta(share):
    model = meta_vit()
    each = {name: SILENT[name] for name in SILENT if SILENT[name]}
    patch_model(model, ALL, share=share, absolute="hide", **each)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert "new parameters" in str(posenc.summary(model))
    unpatch_model(model)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_meta_model_runs():
    model = patch_model(meta_vit(), "peg+irpe")
    out = model(torch.zeros(2, 3, 12, 20, device="meta", dtype=torch.float64))
    assert (out.shape, out.device.type) == ((2, 5), "meta")


def test_an_empty_model_can_be_filled():
    """Patched without memory, given memory, loaded."""
    source = randomise_encodings(patch_model(vit(), "peg+irpe+swin"))
    model = patch_model(meta_vit(), "peg+irpe+swin").to_empty(device="cpu")
    model.load_state_dict(source.state_dict())
    x = images(model)
    assert torch.equal(model(x), source(x))


def test_moving_a_patched_model():
    model = randomise_encodings(patch_model(vit(), "peg+swin", share=True))
    x = images(model)
    expected = model(x)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=1e-4, atol=1e-4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# Training


@pytest.mark.parametrize("share", [False, True])
def test_every_new_parameter_gets_a_gradient(share):
    model = vit(5)
    patch_model(model, ALL, share=share, **{n: o for n, o in SILENT.items() if o})
    randomise_encodings(model).train()
    model.forward_features(images(model)).pow(3).sum().backward()  # of all tokens
    for name, parameter in posenc.encoding_parameters(model):
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_encoding_parameters_are_the_models_own():
    model = patch_model(vit(), "peg+irpe")
    ours = dict(posenc.encoding_parameters(model))
    named = dict(model.named_parameters())
    assert list(ours) == [name for name in named if "posenc" in name]
    assert all(named[name] is parameter for name, parameter in ours.items())
    with pytest.raises(ValueError, match=r"is not patched; call posenc.patch_model"):
        posenc.encoding_parameters(vit())


def test_a_frozen_model_trains_only_its_encodings():
    model = vit()
    model.requires_grad_(False)
    patch_model(model, "irpe")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    train(model.train())
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]) == ("posenc" not in key)


def test_dropout_in_training_follows_the_seed():
    model = patch_model(vit(attn_drop_rate=0.5)).train()
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(model(images(model)))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_attention_masks_of_the_model_are_kept():
    model = randomise_encodings(patch_model(vit(), "swin"))
    x = images(model)
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[:, 7] = False
    found = patched_encodings(model)

    def bias(name, q, k):
        bias = oracles.swin_bias(found[f"{name}.swin"].table, 3, 5, 1)
        return bias.masked_fill(~mask, -torch.inf)

    expected = eager(model, x, bias)
    out = model.forward_head(model.forward_features(x, attn_mask=mask))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_backends_agree_in_a_model(backend):
    model = randomise_encodings(patch_model(vit(), "irpe+human_part", backend=backend))
    other = randomise_encodings(patch_model(vit(), "irpe+human_part"))
    x = images(model)
    torch.testing.assert_close(model(x), other(x), rtol=1e-12, atol=1e-12)
    assert posenc.summary(model).backend == backend


def test_a_backend_that_cannot_names_itself():
    with pytest.raises(ValueError, match='backend="sdpa" does not compute this call: ValueLookup'):
        patch_model(vit(), "irpe", on="v", backend="sdpa")
    automatic = patch_model(vit(), "irpe", on="v")
    assert posenc.summary(automatic).backend == "auto (tiled)"


def test_a_deepcopy_of_one_site_is_independent():
    model = randomise_encodings(patch_model(vit(), "swin"))
    attention = copy.deepcopy(model.blocks[0].attn)
    x = torch.randn(1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = model.blocks[0].attn(x)
    assert torch.equal(attention(x), expected)
    unpatch_model(model)
    assert torch.equal(attention(x), expected)


# Warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoding": "quadratic"}, r"Quadratic has an effect from the start \(strength=0"),
        ({"encoding": "sinusoidal"}, "Sinusoidal has an effect from the start"),
        ({"encoding": "human_part", "strength": 1.0}, "HumanPart has an effect from the start"),
        ({"encoding": "swin", "init": "paper"}, "SwinBias has an effect from the start"),
        ({"encoding": "learned", "init": "paper"}, "LearnedAbsolute has an effect"),
        ({"encoding": "peg", "init": "paper"}, "PEG has an effect from the start"),
        ({"encoding": "irpe", "absolute": "hide"}, "the model's position table is hidden$"),
        (
            {"encoding": "quadratic+sinusoidal", "absolute": "hide"},
            "Quadratic has an .*; Sinusoidal has an .*; the model's position table is hidden",
        ),
    ],
)
def test_warns_once_when_outputs_change(arguments, message):
    model = vit()
    expected = model(images(model))
    with pytest.warns(UserWarning, match=f"posenc: the patched model gives.*{message}") as record:
        patch_model(model, **arguments)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert not torch.allclose(model(images(model)), expected, rtol=1e-6)


def test_a_warning_made_an_error_leaves_the_model_untouched():
    model = vit()
    before = snapshot(model)
    with pytest.raises(UserWarning, match="Quadratic has an effect"):
        patch_model(model, "quadratic")
    assert snapshot(model) == before


def test_a_single_patch_is_pointless():
    with pytest.warns(UserWarning, match="the layout 1x1 . 1 prefix has a single patch") as record:
        patch_model(vit(img_size=(4, 4)))
    assert record[0].filename == __file__


# Reports


def test_summary():
    model = patch_model(vit(5, depth=3), "peg+irpe+learned", absolute="hide")
    summary = posenc.summary(model)
    assert summary.layout == TokenLayout(3, 5, 5)
    assert summary.sites == {
        "blocks.0": ("peg",),
        **{f"blocks.{i}.attn": ("irpe",) for i in range(3)},
        "VisionTransformer": ("learned",),
    }
    assert summary.new_parameters == 3 * 8 * 50 + 16 * 10 + 20 * 16
    assert summary.changing == ()
    assert summary.own_positions == ("absolute table pos_embed, hidden",)
    lines = str(summary).splitlines()
    assert lines[0] == "layout:         3x5 + 5 prefix = 20 tokens"
    assert "sites:          blocks.0.attn ... blocks.2.attn (3) <- irpe" in lines
    assert "new parameters: 1,680" in lines
    assert "backend:        auto (sdpa)" in lines
    assert any("irpe: IRPE(mode=contextual" in line for line in lines)
    assert not any(line.startswith("warning") for line in lines)


def test_summary_of_changes_and_doubled_positions():
    with pytest.warns(UserWarning, match="Sinusoidal has an effect"):
        model = patch_model(vit(), "sinusoidal")
    text = str(posenc.summary(model))
    assert "[changes the model at start]" in text
    assert "warning:        sinusoidal on top of the model's own absolute table" in text
    assert "own positions:  absolute table pos_embed\n" in text
    assert "not used (no encoding acts inside attention)" in text


def test_summary_needs_a_patched_model():
    with pytest.raises(ValueError, match=r"is not patched; call posenc.patch_model"):
        posenc.summary(vit())


def test_summary_changes_nothing():
    model = randomise_encodings(patch_model(vit(), "irpe+swin")).train()
    before = snapshot(model)
    rng = torch.get_rng_state()
    posenc.summary(model)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), rng)


def test_supports():
    model = vit(depth=3)
    before = snapshot(model)
    report = posenc.supports(model)
    assert report
    assert (report.layout, report.reason, report.refused) == (TokenLayout(3, 5, 1), "", {})
    assert report.sites == tuple(f"blocks.{i}.attn" for i in range(3))
    assert str(report) == (
        "supported: yes\nlayout:    3x5 + 1 prefix\nsites:     blocks.0.attn ... blocks.2.attn (3)"
    )
    assert snapshot(model) == before


def test_supports_tells_why_not():
    assert "found no model that posenc knows in Linear" in str(posenc.supports(nn.Linear(2, 2)))
    assert "already patched" in str(posenc.supports(patch_model(vit())))
    model = vit()
    model.blocks[1] = vit(attn_layer=OwnAttention).blocks[1]
    report = posenc.supports(model)
    assert not report
    assert report.sites == ("blocks.0.attn",)
    assert (
        "refused:   blocks.1.attn: OwnAttention: its forward delegates to its parent class (super)"
        in str(report)
    )
    with pytest.raises(ValueError, match=r"blocks.1.attn cannot be patched"):
        patch_model(model)


def test_sites_inside_a_block_subclass():
    class MyBlock(Block):
        pass

    model = randomise_encodings(patch_model(vit(block_fn=MyBlock), "peg+irpe"))
    x = images(model)
    expected = expected_logits(model, "peg+irpe", (3, 5, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_the_config_is_plain_data():
    model = patch_model(vit(), "peg+irpe", irpe={"mode": "bias"}, after=(1,), blocks=[0])
    assert posenc.encoding_config(model) == {
        "encodings": [
            {"name": "peg", "options": {"kernel_size": 3, "after": [1], "init": "zero"}},
            {
                "name": "irpe",
                "options": {
                    "mode": "bias",
                    "method": "product",
                    "on": "k",
                    "share_heads": True,
                    "ratio": 1.9,
                    "prefix_pairs": "shared",
                    "init": "zero",
                },
            },
        ],
        "layout": {"height": 3, "width": 5, "prefix": 1},
        "layout_given": False,
        "windows": {},
        "sites": ["blocks.0.attn"],
        "share": False,
        "absolute": "keep",
        "backend": "auto",
    }
    with pytest.raises(ValueError, match=r"'custom' is not registered.* posenc.registry.register"):
        posenc.encoding_config(patch_model(vit(), custom))
