"""Tables, networks and convolutions of models that are no plain vision transformers.

They are compared with timm's own classes at the attention (or after the block).
"""

import copy

import pytest
import tiny_vit
import torch
import windowed_models
from oracles import randomize
from random_encodings import randomize_encodings
from timm.models.convit import ConVit
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2

import posenc
from posenc import load_reference_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:posenc. the patched model:UserWarning")


def windowed(cls=SwinTransformer, **options):
    return randomize(windowed_models.swin(cls, **options).double(), scale=0.3).eval()


def images(*size):
    return torch.randn(2, 3, *size, dtype=torch.float64)


def without(model, *names):
    """The same model with zeros in parameters of these names."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                parameter.zero_()
    return model


# Swin


def test_swin_gives_the_logits_of_its_own_tables():
    theirs = windowed()
    model = posenc.patch_model(without(theirs, "relative_position_bias_table"), "swin")
    x = images(12, 20)
    assert (model(x) - theirs(x)).abs().max() > 1e-3
    before = {k: v.clone() for k, v in model.state_dict().items() if ".posenc." not in k}
    loaded = load_reference_checkpoint(model, theirs.state_dict(), source="swin")
    assert loaded.loaded == tuple(posenc.encoding_state_dict(model))
    assert len(loaded.left_out) == len(theirs.state_dict()) - 4
    torch.testing.assert_close(model(x), theirs(x), atol=1e-12, rtol=0)
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_tables_follow_each_other_in_any_model():
    """In the order of the blocks by number, not by letter: block 10 is after block 9."""
    tables = {
        f"layers.0.blocks.{block}.attn.relative_position_bias_table": torch.full(
            (45, 2), 1.0 * block
        )
        for block in (0, 1, 10, 2)
    }
    model = posenc.patch_model(tiny_vit.vit(0, depth=4), "swin")
    load_reference_checkpoint(model, tables, source="swin")
    found = [encoding.table[0, 0].item() for encoding in posenc.patched_encodings(model).values()]
    assert found == [0, 1, 2, 10]


@pytest.mark.parametrize("new", [(3, 6), (2, 2)])
def test_another_window_is_resized_bicubically(new):
    theirs = windowed(window_size=((2, 4), (3, 3)))
    options = {"window_size": (new, (3, 3)), "img_size": (24, 24)}
    model = posenc.patch_model(windowed(**options), "swin")
    loaded = load_reference_checkpoint(model, theirs.state_dict(), source="swin", grid=(2, 4))
    assert loaded.resized == tuple(
        f"layers.0.blocks.{block}.attn.posenc.swin.table: 2x4 to {new[0]}x{new[1]}"
        for block in range(2)
    )
    table = theirs.layers[0].blocks[1].attn.relative_position_bias_table.detach()
    image = table.T.unflatten(1, (3, 7))[None]
    sides = (2 * new[0] - 1, 2 * new[1] - 1)
    expected = torch.nn.functional.interpolate(image, sides, mode="bicubic")[0].flatten(1)
    ours = model.layers[0].blocks[1].attn.posenc.swin.table.detach()
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    same = theirs.layers[1].blocks[0].attn.relative_position_bias_table
    assert torch.equal(model.layers[1].blocks[0].attn.posenc.swin.table, same.T)


def test_a_window_of_unknown_size():
    model = posenc.patch_model(windowed(window_size=((3, 6), (3, 6)), img_size=(24, 24)), "swin")
    message = r"layers.0.blocks.0.attn.relative_position_bias_table has 21 .*3x6 has 55: pass grid="
    with pytest.raises(ValueError, match=message):
        load_reference_checkpoint(model, windowed().state_dict(), source="swin")


def test_another_number_of_tables():
    model = posenc.patch_model(windowed(), "swin", blocks=[0, 1])
    with pytest.raises(ValueError, match=r"has 4 places for swin \(layers.0.* has 2 .*blocks="):
        load_reference_checkpoint(model, windowed().state_dict(), source="swin")


def test_entries_for_prefix_tokens():
    model = posenc.patch_model(tiny_vit.vit(), "swin", prefix_pairs="separate")
    tables = {
        f"layers.0.blocks.{b}.attn.relative_position_bias_table": torch.ones(45, 2) for b in (0, 1)
    }
    with pytest.raises(ValueError, match=r"prefix_pairs='separate'.*needs 'none'"):
        load_reference_checkpoint(model, tables, source="swin")


def test_a_key_that_swin_does_not_have():
    model = posenc.patch_model(windowed(), "swin")
    state = windowed().state_dict() | {"layers.0.blocks.0.attn.logit_scale": torch.ones(2, 1, 1)}
    with pytest.raises(
        ValueError, match=r"Only in the checkpoint: layers\.0\.blocks\.0\.attn\.logit"
    ):
        load_reference_checkpoint(model, state, source="swin")


def test_other_encodings_beside_it_stay():
    model = randomize_encodings(posenc.patch_model(windowed(), "swin+irpe"))
    before = {k: v.clone() for k, v in model.state_dict().items() if ".posenc.irpe." in k}
    loaded = load_reference_checkpoint(model, windowed().state_dict(), source="swin")
    assert not any("irpe" in name for name in loaded.loaded)
    assert len(before) == 4
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), key


# Swin V2


@pytest.mark.parametrize("pretrained", [None, (4, 6)])
def test_swin_v2_gives_the_logits_of_its_own_networks(pretrained):
    own = {} if pretrained is None else {"pretrained_window_sizes": (pretrained, pretrained)}
    theirs = windowed(SwinTransformerV2, **own)
    plain = without(theirs, "cpb_mlp.2.weight", "logit_scale")
    model = posenc.patch_model(plain, "cpb+cosine", pretrained=pretrained)
    loaded = load_reference_checkpoint(model, theirs.state_dict(), source="swin_v2")
    assert loaded.loaded == tuple(posenc.encoding_state_dict(model))
    x = images(12, 20)
    # timm's coordinates are float32
    torch.testing.assert_close(model(x), theirs(x), atol=1e-6, rtol=0)


def test_swin_v2_needs_both():
    model = posenc.patch_model(windowed(SwinTransformerV2), "cpb")
    with pytest.raises(
        ValueError, match=r'needs cpb and cosine: .*patch_model\(model, "cpb\+cosine"\)'
    ):
        load_reference_checkpoint(model, windowed(SwinTransformerV2).state_dict(), source="swin_v2")


def test_swin_v2_without_its_scales():
    model = posenc.patch_model(windowed(SwinTransformerV2), "cpb+cosine")
    state = windowed(SwinTransformerV2).state_dict()
    state = {key: value for key, value in state.items() if "logit_scale" not in key}
    with pytest.raises(ValueError, match=r"has 0 places for cosine .*the model has 4"):
        load_reference_checkpoint(model, state, source="swin_v2")


def test_swin_v2_of_another_width():
    model = posenc.patch_model(windowed(SwinTransformerV2), "cpb+cosine", hidden=8)
    with pytest.raises(ValueError, match=r"hidden_weight \[512, 2\] instead of \[8, 2\].*hidden="):
        load_reference_checkpoint(model, windowed(SwinTransformerV2).state_dict(), source="swin_v2")


# ConViT


def convit_of_timm(**options):
    settings = {
        "img_size": 12,
        "patch_size": 4,
        "embed_dim": 8,
        "depth": 3,
        "num_heads": 2,
        "local_up_to_layer": 2,
        "num_classes": 5,
        "qkv_bias": True,
        **options,
    }
    return randomize(ConVit(**settings).double(), scale=0.3).eval()


def test_convit_attends_as_the_class_of_timm():
    theirs = convit_of_timm()
    vit = tiny_vit.vit(0, img_size=(12, 12), depth=3)
    model = posenc.patch_model(vit, "convit", blocks=[0, 1], strength=0)
    loaded = load_reference_checkpoint(model, theirs.state_dict(), source="convit")
    assert loaded.loaded == tuple(posenc.encoding_state_dict(model))
    assert "blocks.0.attn.pos_proj.bias" in loaded.left_out
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    for block in range(2):
        ours, attention = model.blocks[block].attn, theirs.blocks[block].attn
        with torch.no_grad():
            for name in ("weight", "bias"):
                parts = [getattr(layer, name) for layer in (attention.qk, attention.v)]
                getattr(ours.qkv, name).copy_(torch.cat(parts))
                getattr(ours.proj, name).copy_(getattr(attention.proj, name))
        torch.testing.assert_close(ours(x), attention(x), atol=1e-12, rtol=0)


def test_convit_in_as_many_blocks_as_it_has_gates():
    model = posenc.patch_model(tiny_vit.vit(0, depth=3), "convit")
    with pytest.raises(ValueError, match=r"has 2 places for convit .*the model has 3"):
        load_reference_checkpoint(model, convit_of_timm().state_dict(), source="convit")


# CPVT and Twins


def test_a_generator_of_twins():
    twins = randomize(windowed_models.twins(None).double())
    state = twins.state_dict()
    stage = {key: value for key, value in state.items() if not key.startswith("pos_block.0.")}
    vit = tiny_vit.vit(2)  # of width 16, as the second stage
    model = posenc.patch_model(vit, "peg")
    load_reference_checkpoint(model, {"state_dict": stage}, source="cpvt")
    x = torch.randn(2, 17, 16, dtype=torch.float64)
    ours = posenc.patched_encodings(model)["blocks.0.peg"](x, posenc.TokenLayout(3, 5, 2))
    expected = twins.pos_block[1](x[:, 2:], (3, 5))
    torch.testing.assert_close(ours, torch.cat([x[:, :2], expected], 1), atol=1e-12, rtol=0)


def test_the_generators_of_all_stages():
    state = windowed_models.twins(None).state_dict()
    model = posenc.patch_model(tiny_vit.vit(), "peg")
    with pytest.raises(ValueError, match=r"has 2 places for peg.*the model has 1.*pos_block\.0\."):
        load_reference_checkpoint(model, state, source="cpvt")
    model = posenc.patch_model(tiny_vit.vit(), "peg", after=(0, 1))
    with pytest.raises(ValueError, match=r"peg\.weight \[8, 1, 3, 3\] instead of \[16, 1, 3, 3\]"):
        load_reference_checkpoint(model, state, source="cpvt")
