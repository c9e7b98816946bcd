"""Checkpoints of RoPE-ViT in plain vision transformers of timm."""

import golden_cases
import pytest
import torch
from oracles import randomize
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

import posenc
from posenc import load_reference_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:posenc. the patched model:UserWarning")
SIZES = {
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 5,
    "init_values": 0.1,
    "global_pool": "token",
    "no_embed_class": True,
}


def rope_of_timm(mixed, ape=False, img_size=(12, 20)):
    """As vit_small_patch16_rope_224 and its kin are built."""
    model = Eva(
        img_size=img_size,
        attn_type="rope",
        use_abs_pos_emb=ape,
        use_rot_pos_emb=True,
        rope_grid_indexing="xy",
        rope_temperature=10.0 if mixed else 100.0,
        rope_type="mixed" if mixed else "cat",
        **SIZES,
    )
    return randomize(model.double(), scale=0.3).eval()


def plain(mixed, ape=False, img_size=(12, 20), **options):
    table = "learn" if ape else "none"
    model = VisionTransformer(img_size=img_size, pos_embed=table, **{**SIZES, **options})
    return randomize(model.double(), seed=7).eval()


def patched(mixed, ape=False, img_size=(12, 20), blocks=None, **options):
    how = {"encoding": "rope_mixed"} if mixed else {"encoding": "rope", "convention": "rope_vit"}
    vit = plain(mixed, ape, img_size, **options)
    return posenc.patch_model(vit, **how, blocks=blocks)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("ape", [False, True])
def test_a_plain_model_gives_the_logits_of_timm(mixed, ape):
    theirs, model = rope_of_timm(mixed, ape), patched(mixed, ape)
    loaded = load_reference_checkpoint(model, theirs.state_dict(), source="rope_vit")
    assert set(loaded.loaded) == set(model.state_dict())
    x = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    torch.testing.assert_close(model(x), theirs(x), atol=1e-6, rtol=0)  # timm turns in float32


def test_the_gradient_of_the_frequencies_is_that_of_timm():
    theirs, model = rope_of_timm(True), patched(True)
    load_reference_checkpoint(model, theirs.state_dict(), source="rope_vit")
    x = torch.randn(2, 3, 12, 20, dtype=torch.float64)
    for network in (theirs, model):
        network(x).square().sum().backward()
    ours = torch.stack([block.attn.posenc.rope_mixed.freqs.grad for block in model.blocks], 1)
    torch.testing.assert_close(ours, theirs.rope.freqs.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", ["all", "blocks"])
def test_the_names_and_shapes_of_the_published_code(names):
    """A table for all blocks, heads side by side, with buffers; or one in each layer."""
    theirs, model = rope_of_timm(True), patched(True)
    state = dict(theirs.state_dict())
    freqs = state.pop("rope.freqs")
    if names == "all":
        state["freqs"] = freqs.flatten(2)
        state |= {"freqs_t_x": torch.arange(15.0), "freqs_t_y": torch.arange(15.0)}
    else:
        for block in range(2):
            state[f"blocks.{block}.attn.freqs"] = freqs[:, block].flatten(1)
    loaded = load_reference_checkpoint(model, state, source="rope_vit")
    assert set(loaded.left_out) == {key for key in state if "freqs_t_" in key}
    for block in range(2):
        ours = model.blocks[block].attn.posenc.rope_mixed.freqs
        assert torch.equal(ours, freqs[:, block])


@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_a_published_layer(kind):
    golden = golden_cases.case(f"rope_vit_attention_{kind}_4x4")
    model = patched(kind == "mixed", img_size=(16, 16), depth=1)
    state = model.state_dict()
    state = {key: value for key, value in state.items() if "attn" not in key}
    layer = {k.removeprefix("p."): v for k, v in golden.arrays.items() if k.startswith("p.")}
    state |= {f"blocks.0.attn.{key}": value for key, value in layer.items()}
    load_reference_checkpoint(model, state, source="rope_vit")
    seen = {}
    model.blocks[0].norm1.register_forward_hook(lambda *_: golden["x"])
    model.blocks[0].attn.register_forward_hook(lambda m, i, out: seen.update(out=out))
    model(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    torch.testing.assert_close(seen["out"], golden["out"], **golden.close)


@pytest.mark.parametrize("new", [(16, 28), (8, 12)])
def test_another_grid(new):
    theirs, model = rope_of_timm(True, ape=True), patched(True, ape=True, img_size=new)
    state = theirs.state_dict()
    loaded = load_reference_checkpoint(model, state, source="rope_vit", grid=(3, 5))
    grid = new[0] // 4, new[1] // 4
    assert loaded.resized == (f"pos_embed: 3x5 to {grid[0]}x{grid[1]}",)
    rows = state["pos_embed"].unflatten(1, (3, 5)).movedim(-1, 1)
    rows = torch.nn.functional.interpolate(rows, grid, mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.pos_embed.detach(), rows.flatten(2).mT, atol=1e-12, rtol=0)
    # Frequencies have no size: patches are counted on.
    assert torch.equal(model.blocks[0].attn.posenc.rope_mixed.freqs, state["rope.freqs"][:, 0])


# Bad input


def test_the_axial_model_for_mixed_frequencies_and_the_reverse():
    with pytest.raises(ValueError, match=r"needs rope: .*convention='rope_vit', strength"):
        load_reference_checkpoint(
            patched(True), rope_of_timm(False).state_dict(), source="rope_vit"
        )
    with pytest.raises(ValueError, match=r"patched with rope, the rope_vit .*needs rope_mixed"):
        load_reference_checkpoint(
            patched(False), rope_of_timm(True).state_dict(), source="rope_vit"
        )


def test_another_convention():
    model = posenc.patch_model(plain(False), "rope", convention="croco")
    with pytest.raises(ValueError, match=r"rope of convention='croco'.*needs 'rope_vit'"):
        load_reference_checkpoint(model, rope_of_timm(False).state_dict(), source="rope_vit")


def test_axial_in_some_blocks_only():
    model = patched(False, blocks=[0])
    with pytest.raises(ValueError, match=r"rope in blocks\.0\.attn.*all 2 blocks: patch without"):
        load_reference_checkpoint(model, rope_of_timm(False).state_dict(), source="rope_vit")


def test_rows_for_prefix_tokens():
    model = patched(False, ape=True, no_embed_class=False)
    state = rope_of_timm(False, ape=True).state_dict()
    message = r"pos_embed \[1, 15, 24\] instead of \[1, 16, 24\].*no_embed_class"
    with pytest.raises(ValueError, match=message):
        load_reference_checkpoint(model, state, source="rope_vit")


def test_as_many_frequencies_of_other_heads():
    with pytest.raises(ValueError, match=r"freqs \[2, 2, 6\] instead of \[2, 3, 4\]"):
        load_reference_checkpoint(
            patched(True, num_heads=3), rope_of_timm(True).state_dict(), source="rope_vit"
        )


def test_frequencies_of_other_heads():
    state = rope_of_timm(True).state_dict()
    state["rope.freqs"] = state["rope.freqs"][..., :4]
    with pytest.raises(ValueError, match=r"freqs \[2, 2, 4\] instead of \[2, 2, 6\]"):
        load_reference_checkpoint(patched(True), state, source="rope_vit")


def test_frequencies_under_two_names():
    state = rope_of_timm(True).state_dict()
    state["blocks.1.attn.freqs"] = torch.ones(2, 12)
    with pytest.raises(ValueError, match=r"has blocks\.1\.attn\.freqs twice, under two names"):
        load_reference_checkpoint(patched(True), state, source="rope_vit")


def test_layer_scale_under_two_names():
    state = rope_of_timm(False).state_dict() | {"blocks.0.ls1.gamma": torch.ones(24)}
    with pytest.raises(ValueError, match=r"Only in the checkpoint: blocks\.0\.ls1\.gamma"):
        load_reference_checkpoint(patched(False), state, source="rope_vit")
