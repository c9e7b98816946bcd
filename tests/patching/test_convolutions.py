"""Convolutions before blocks, inside MLPs and where attention starts, in models of one grid."""

from __future__ import annotations

import copy

import convolved
import dynamic_vit
import pytest
import tiny_global
import tiny_windowed
import torch
from convolved import NAMES
from random_encodings import randomize_encodings
from timm.layers import Mlp
from tiny_vit import MODELS, images, snapshot, vit

import posenc
from posenc import patch_model
from posenc.analysis import capture_attention

each_name = pytest.mark.parametrize("name", NAMES)


def global_images(name):
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, *tiny_global.CASES[name].image)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("family", "name"), convolved.cases())
def test_every_family_is_the_loop_at_its_place(family, name):
    """The start is the model itself, and the way back is exact."""
    model, plain, x = (
        tiny_global.build(family),
        tiny_global.build(family),
        global_images(family),
    )
    before = snapshot(model)
    with torch.no_grad():
        unpatched = model(x)
        patch_model(model, name)
        assert list(convolved.found(model, name)) == convolved.sites(family, name)
        # Its norm in float32 sums in the order of memory.
        rounded = 1e-6 if family == "deepseek" else 1e-12
        torch.testing.assert_close(model(x), unpatched, rtol=0, atol=rounded)
        randomize_encodings(model)
        actual, encodings = model(x), [*convolved.found(model, name).values()]
        places = convolved.hook_places(family, name)
        convolved.hook(plain, places, encodings, convolved.layout_of(family))
        expected = plain(x)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
        assert (expected - unpatched).abs().max() > 1e-6
        posenc.unpatch_model(model)
        assert torch.equal(model(x), unpatched)
    assert snapshot(model) == before


@pytest.mark.parametrize("kind", ["distilled", "parallel_things"])
@each_name
def test_gradients_reach_every_kernel(kind, name):
    model = randomize_encodings(patch_model(vit(**MODELS[kind][0], depth=3), name)).train()
    assert len(convolved.found(model, name)) in (3, 6)
    features = model.forward_features(images(model))
    features.square().sum().backward()  # of all tokens: CLS alone does not read the last MLP
    for key, parameter in posenc.encoding_parameters(model):
        assert (parameter.grad != 0).all(), key


@each_name
def test_keys_shapes_and_modules_in_order(name):
    model = patch_model(vit(mlp_ratio=3.0), name)
    shapes = {k: tuple(v.shape) for k, v in posenc.encoding_state_dict(model).items()}
    width = 48 if name == "local_ffn" else 16
    assert shapes == {
        f"{site}.posenc.{name}.{key}": shape
        for site in convolved.sites("vit", name)
        for key, shape in (("weight", (width, 1, 3, 3)), ("bias", (width,)))
    }


def test_at_chooses_blocks():
    model = patch_model(vit(depth=3), "lpu+local_ffn", lpu={"at": (0, -1)}, local_ffn={"at": [1]})
    assert [*posenc.patched_encodings(model)] == [
        "blocks.0.lpu",
        "blocks.1.mlp.drop1.local_ffn",
        "blocks.2.lpu",
    ]


def test_blocks_chooses_attention():
    model = patch_model(vit(depth=3), "conv_projection+irpe+lpu", blocks=[0, 2], lpu={"at": 1})
    assert [*posenc.patched_encodings(model)] == [
        "blocks.0.attn.conv_projection",
        "blocks.0.attn.irpe",
        "blocks.1.lpu",
        "blocks.2.attn.conv_projection",
        "blocks.2.attn.irpe",
    ]
    config = posenc.encoding_config(model)
    assert config["sites"] == ["blocks.0.attn", "blocks.2.attn"]


ALL = "learned+lpu+conv_projection+irpe+local_ffn+peg"


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("names", [ALL, "conv_projection", "lpu", "local_ffn"])
def test_saved_loaded_and_patched_from_the_config(tmp_path, names, share):
    options = {"blocks": [1]} if "conv" in names else {"at": (1,)}
    if names == ALL:
        options = {"blocks": [1], "local_ffn": {"at": (0,)}}
    model = randomize_encodings(patch_model(vit(), names, share=share, **options))
    posenc.save_encodings(model, tmp_path / "saved.safetensors")
    x = images(model)
    with torch.no_grad():
        for fresh in (
            posenc.load_encodings(vit(), tmp_path / "saved.safetensors"),
            posenc.patch_from_config(vit(), posenc.encoding_config(model)),
        ):
            assert [*posenc.patched_encodings(fresh)] == [*posenc.patched_encodings(model)]
            fresh.load_state_dict(model.state_dict())
            assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("family", ["vit", "beit", "vit_parallel"])
def test_several_at_one_block_act_in_order(family):
    """Positions, then what enters the block, then attention, then what leaves it."""
    model = randomize_encodings(patch_model(tiny_global.build(family), "lpu+peg+irpe+learned"))
    plain, x = patch_model(tiny_global.build(family), "irpe"), global_images(family)
    for site, encoding in convolved.found(model, "irpe").items():
        posenc.patched_encodings(plain)[f"{site}.irpe"].load_state_dict(encoding.state_dict())
    (learned,) = convolved.found(model, "learned").values()
    layout = convolved.layout_of(family)
    plain.blocks[0].register_forward_pre_hook(
        lambda module, args: (args[0] + learned.table, *args[1:])
    )
    convolved.hook(plain, ["blocks.1"], convolved.found(model, "peg").values(), layout)
    lpus = convolved.found(model, "lpu").values()
    convolved.hook(plain, ["blocks.0", "blocks.1"], lpus, layout)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)


def test_the_summary_names_sites_in_order():
    model = patch_model(tiny_global.build("beit"), "peg+lpu+learned+conv_projection+irpe")
    text = str(posenc.summary(model))
    assert "blocks.0 <- learned + lpu + peg" in text
    assert "blocks.0.attn, blocks.1.attn <- irpe + conv_projection" in text
    assert "lpu: LPU(16, kernel_size=3) [no effect at start]" in text


@each_name
def test_other_image_sizes_are_followed(name):
    model = randomize_encodings(patch_model(vit(), name))
    stored = copy.deepcopy(posenc.encoding_state_dict(model))
    model.set_input_size(img_size=(20, 12))
    twin = vit()
    twin.set_input_size(img_size=(20, 12))
    x, encodings = images(model), convolved.found(model, name).values()
    convolved.hook(twin, convolved.hook_places("vit", name), encodings, (5, 3, 1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), rtol=1e-9, atol=1e-9)
    for key, value in posenc.encoding_state_dict(model).items():
        assert torch.equal(value, stored[key])


@each_name
def test_images_of_any_size_are_followed(name):
    model = randomize_encodings(patch_model(dynamic_vit.build(), name))
    encodings = convolved.found(model, name).values()
    for grid in [(3, 5), (5, 3), (1, 6)]:
        plain, x = dynamic_vit.build(), dynamic_vit.images(grid)
        convolved.hook(plain, convolved.hook_places("vit", name), encodings, (*grid, 5))
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)


def gradients(model, crops):
    model.zero_grad()
    sum(model(x).square().sum() for x in crops).backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


@each_name
def test_activation_checkpointing_replays_each_layout(name):
    crops = [dynamic_vit.images((3, 4)), dynamic_vit.images((4, 3)), dynamic_vit.images((2, 6))]
    model = randomize_encodings(patch_model(dynamic_vit.build(), name)).train()
    expected = gradients(model, crops)
    model.set_grad_checkpointing()
    actual = gradients(model, crops)
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(actual[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_attention_that_receives_a_map():
    """SAM's, in the blocks without windows; the map tells the grid."""
    options = {"blocks": [1]}
    model = patch_model(dynamic_vit.build("sam"), "conv_projection+swin", **options)
    encodings = convolved.found(randomize_encodings(model), "conv_projection").values()
    for grid in [(3, 5), (5, 3)]:
        plain, x = (
            patch_model(dynamic_vit.build("sam"), "swin", **options),
            dynamic_vit.images(grid),
        )
        (own,), (other,) = (convolved.found(m, "swin").values() for m in (model, plain))
        other.load_state_dict(own.state_dict())
        convolved.hook(plain, ["blocks.1.attn"], encodings, (*grid, 0))
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)


@each_name
def test_tokens_that_were_dropped_have_no_layout(name):
    model = patch_model(vit(patch_drop_rate=0.5), name).train()
    with pytest.raises(RuntimeError, match=r"got 8 tokens, but its layout 3x5 \+ 1 prefix has 16"):
        model(images(model))


class OwnMlp(Mlp):
    """Its forward leaves the dropout out, and with it what posenc would put there."""

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({}, {"at": (2,)}, r"lpu: at=\(2,\) names block 2, but the model has 2 blocks \(0 to 1\)"),
        ({}, {"at": (1, -1)}, r"lpu: at=\(1, -1\) names block -1 twice"),
        ({}, {"blocks": [0]}, r"selects attention modules, but lpu acts on tokens \(lpu has at=\)"),
        ({"mlp_layer": OwnMlp}, {"encoding": "local_ffn"}, r"local_ffn: blocks.0 has no MLP whose"),
        (
            MODELS["parallel_scaling"][0],
            {"encoding": "conv_projection"},
            r"conv_projection cannot act at blocks.0: one projection .* MLP's input. Leave it out",
        ),
    ],
)
def test_what_does_not_fit(settings, options, message):
    model = vit(**settings)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        patch_model(model, **{"encoding": "lpu", **options})
    assert snapshot(model) == before


@each_name
def test_windows_and_stages_are_refused(name):
    model = tiny_windowed.build("swin")
    with pytest.raises(ValueError, match=rf"{name} acts on the tokens of one grid, and SwinTransf"):
        patch_model(model, name)
    assert not posenc.is_patched(model)
    with pytest.raises(ValueError, match=r"blocks.0.attn: it sees windows of 2x2, and the model"):
        patch_model(tiny_global.build("sam"), "conv_projection")


def test_hidden_tokens_of_several_widths():
    model = vit()
    model.blocks[1].mlp = Mlp(16, 24).double()
    with pytest.raises(ValueError, match=r"share=True needs tokens of equal width, got \[24, 32\]"):
        patch_model(model, "local_ffn", share=True)
    encodings = posenc.patched_encodings(patch_model(model, "local_ffn")).values()
    assert [encoding.embed_dim for encoding in encodings] == [32, 24]
    assert model(images(model)).isfinite().all()


def test_a_callable_is_told_the_width_of_the_tokens():
    asked = []

    def hidden(layout, num_heads, head_dim, embed_dim):
        asked.append(embed_dim)
        return posenc.LocalFFN(layout, embed_dim, at=(1,))

    model = patch_model(vit(), hidden)
    assert asked[-1] == 32
    assert [*posenc.patched_encodings(model)] == ["blocks.1.mlp.drop1.hidden"]

    def narrow(layout, *sizes):
        return posenc.LocalFFN(layout, 16)

    def narrow_attention(layout, *sizes):
        return posenc.ConvProjection(layout, 8)

    with pytest.raises(ValueError, match="selects none of the 2 attention modules"):
        patch_model(vit(), narrow_attention, blocks=lambda name: False)
    with pytest.raises(ValueError, match=r"narrow .* width 16, and those at blocks.0.mlp.drop1"):
        patch_model(vit(), narrow)
    with pytest.raises(ValueError, match=r"width 8, and those at blocks.0.attn have 16"):
        patch_model(vit(), narrow_attention)


def test_the_capture_sees_attention_of_encoded_tokens():
    """Of modules whose attention call is not replaced, too."""
    model = randomize_encodings(patch_model(vit(), "conv_projection"))
    plain, x = vit(), images(model)
    encodings = convolved.found(model, "conv_projection").values()
    convolved.hook(plain, ["blocks.0.attn", "blocks.1.attn"], encodings, (3, 5, 1))
    with torch.no_grad():
        expected = model(x)
        with capture_attention(model) as captured, capture_attention(plain) as wanted:
            assert torch.equal(model(x), expected)
            plain(x)
    assert [*captured.attention] == [*wanted.attention] == ["blocks.0.attn", "blocks.1.attn"]
    for site, weights in wanted.attention.items():
        torch.testing.assert_close(captured.attention[site], weights, rtol=1e-9, atol=1e-12)
