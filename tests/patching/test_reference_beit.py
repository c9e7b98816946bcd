"""BEiT checkpoints in plain vision transformers of timm."""

import pytest
import tiny_vit
import torch
from oracles import randomize
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

import posenc
from posenc import load_reference_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:posenc. the patched model:UserWarning")
SIZES = {
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 5,
    "init_values": 0.1,
}


def beit_of_timm(img_size=(12, 20), **options):
    settings = {"use_abs_pos_emb": False, "use_rel_pos_bias": True, **SIZES, **options}
    return randomize(Beit(img_size=img_size, **settings).double(), scale=0.3).eval()


def plain(img_size=(12, 20), dtype=torch.float64, **options):
    settings = {"pos_embed": "none", "global_pool": "avg", **SIZES, **options}
    model = VisionTransformer(img_size=img_size, **settings)
    return randomize(model.to(dtype), seed=7).eval()


def patched(model, **options):
    return posenc.patch_model(model, "beit", **options)


def images(img_size=(12, 20)):
    return torch.randn(2, 3, *img_size, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"init_values": None}])
@pytest.mark.parametrize("pool", ["avg", "token"])
def test_a_plain_model_gives_the_logits_of_timm(options, pool):
    theirs = beit_of_timm(global_pool=pool, **options)
    model = patched(plain(global_pool=pool, **{"qkv_bias": True, **options}))
    loaded = load_reference_checkpoint(model, theirs.state_dict(), source="beit")
    assert set(loaded.loaded) == set(model.state_dict())
    x = images()
    torch.testing.assert_close(model(x), theirs(x), atol=1e-12, rtol=0)
    biases = [block.attn.qkv.bias for block in model.blocks]
    assert all(b is None or not b[16:32].any() for b in biases)  # of keys


def test_gradients_are_those_of_timm():
    theirs, model, x = beit_of_timm(), patched(plain()), images()
    load_reference_checkpoint(model, theirs.state_dict(), source="beit")
    for network in (theirs, model):
        network(x).square().sum().backward()
    for own, other in zip(model.blocks, theirs.blocks, strict=True):
        table = other.attn.relative_position_bias_table.grad.T
        torch.testing.assert_close(own.attn.posenc.beit.table.grad, table, atol=1e-10, rtol=0)
        torch.testing.assert_close(own.ls1.gamma.grad, other.gamma_1.grad, atol=1e-10, rtol=0)


def test_a_model_of_timm_without_its_own_bias():
    theirs, x = beit_of_timm(), images()
    model = patched(randomize(beit_of_timm(use_rel_pos_bias=False), seed=3))
    load_reference_checkpoint(model, theirs.state_dict(), source="beit")
    torch.testing.assert_close(model(x), theirs(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("share", [False, True])
def test_one_table_for_all_blocks(share):
    theirs, x = beit_of_timm(use_rel_pos_bias=False, use_shared_rel_pos_bias=True), images()
    model = patched(plain(), share=share)
    load_reference_checkpoint(model, theirs.state_dict(), source="beit")
    torch.testing.assert_close(model(x), theirs(x), atol=1e-12, rtol=0)


def test_an_absolute_table_and_indices_as_in_pretraining():
    theirs = beit_of_timm(use_abs_pos_emb=True, global_pool="token", num_classes=0)
    index = {"blocks.0.attn.relative_position_index": torch.arange(9).view(3, 3)}
    extra = {"mask_token": torch.ones(1, 1, 16), "lm_head.weight": torch.ones(7, 16)}
    state = theirs.state_dict() | extra | index
    model = patched(plain(pos_embed="learn", global_pool="token", num_classes=0))
    loaded = load_reference_checkpoint(model, state, source="beit")
    assert set(loaded.left_out) == {*extra, *index}
    assert "left out: blocks.0.attn.relative_position_index" in str(loaded)
    x = images()
    torch.testing.assert_close(model(x), theirs(x), atol=1e-12, rtol=0)


def test_a_hidden_absolute_table_may_be_missing():
    theirs, x = beit_of_timm(), images()
    model = patched(plain(pos_embed="learn"), absolute="hide")
    table = model.pos_embed.detach().clone()
    load_reference_checkpoint(model, theirs.state_dict(), source="beit")
    assert torch.equal(model.pos_embed, table)
    torch.testing.assert_close(model(x), theirs(x), atol=1e-12, rtol=0)


def test_a_hidden_absolute_table_cannot_be_loaded():
    model = patched(plain(pos_embed="learn"), absolute="hide")
    state = beit_of_timm(use_abs_pos_emb=True).state_dict()
    with pytest.raises(ValueError, match=r'pos_embed is hidden.*patch with absolute="keep"'):
        load_reference_checkpoint(model, state, source="beit")


# The last has as many patches as the checkpoint's table has rows, that of CLS among them.
@pytest.mark.parametrize("new", [(16, 28), (24, 12), (16, 16)])
def test_another_grid_resizes_tables_by_splines_and_the_absolute_table_bicubically(new):
    state = beit_of_timm(use_abs_pos_emb=True).state_dict()
    model = patched(plain(new, pos_embed="learn"))
    loaded = load_reference_checkpoint(model, state, source="beit", grid=(3, 5))
    grid = new[0] // 4, new[1] // 4
    assert len(loaded.resized) == 3
    assert f"pos_embed: 3x5 to {grid[0]}x{grid[1]}" in loaded.resized
    table = state["blocks.1.attn.relative_position_bias_table"].T
    expected = torch.cat([splines(table[:, :45], (3, 5), grid), table[:, 45:]], 1)
    ours = model.blocks[1].attn.posenc.beit.table.detach()
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)
    rows = state["pos_embed"][:, 1:].unflatten(1, (3, 5)).movedim(-1, 1)
    rows = torch.nn.functional.interpolate(rows, grid, mode="bicubic", align_corners=False)
    expected = torch.cat([state["pos_embed"][:, :1], rows.flatten(2).mT], 1)
    torch.testing.assert_close(model.pos_embed.detach(), expected, atol=1e-12, rtol=0)


def splines(table, old, new):
    """As scipy's spline through the old offsets, at places in geometric progression."""
    interpolate = pytest.importorskip("scipy.interpolate")
    optimize = pytest.importorskip("scipy.optimize")
    image = table.unflatten(1, (2 * old[0] - 1, 2 * old[1] - 1)).numpy()
    for axis in (0, 1):
        steps = old[axis] - 1
        ratio = optimize.brentq(
            lambda q, n=steps, a=axis: sum(q**k for k in range(n)) - (new[a] - 1), 0.1, 9
        )
        half = [sum(ratio**k for k in range(count)) for count in range(steps + 1)]
        spline = interpolate.CubicSpline([-x for x in half[:0:-1]] + half, image, axis=axis + 1)
        image = spline(range(1 - new[axis], new[axis]))
    return torch.from_numpy(image).flatten(1)


def test_without_the_grid_of_another_size():
    model = patched(plain((16, 28)))
    before = tiny_vit.snapshot(model)
    message = r"blocks.0.attn.relative_position_bias_table has 45 entries.*4x7 has 91: pass grid="
    with pytest.raises(ValueError, match=message):
        load_reference_checkpoint(model, beit_of_timm().state_dict(), source="beit")
    with pytest.raises(ValueError, match=r"45 entries.*grid of 2x5 has 27: pass grid="):
        load_reference_checkpoint(model, beit_of_timm().state_dict(), source="beit", grid=(2, 5))
    assert tiny_vit.snapshot(model) == before


def test_a_square_as_large_as_the_rectangle():
    """2x8 and 4x4 patches: nobody can tell, and public code takes the square."""
    state = beit_of_timm((8, 32), use_abs_pos_emb=True).state_dict()
    table = {"pos_embed": state.pop("pos_embed")}
    model = patched(plain((8, 32), pos_embed="learn"))
    with pytest.raises(
        ValueError, match=r"16 entries.*say which it is, grid=\(2, 8\) or .*\(4, 4\)"
    ):
        load_reference_checkpoint(model, state | table, source="beit")
    loaded = load_reference_checkpoint(model, state | table, source="beit", grid=(2, 8))
    assert loaded.resized == ()
    assert torch.equal(model.pos_embed, table["pos_embed"])


def test_tables_of_two_grids_in_one_model():
    """The encoding keeps the grid that it was built for, the absolute table may have another."""
    state = beit_of_timm(use_abs_pos_emb=True).state_dict()
    layout = posenc.TokenLayout(2, 3, prefix=1)
    model = patched(plain(pos_embed="learn", dynamic_img_size=True), layout=layout)
    loaded = load_reference_checkpoint(model, state, source="beit", grid=(3, 5))
    assert [remark.partition(": ")[2] for remark in loaded.resized] == ["3x5 to 2x3"] * 2
    assert torch.equal(model.pos_embed, state["pos_embed"])
    model = posenc.set_layout(patched(plain(pos_embed="learn")), (16, 28))
    loaded = load_reference_checkpoint(model, state, source="beit", grid=(3, 5))
    assert loaded.resized == ("pos_embed: 3x5 to 4x7",)
    table = state["blocks.0.attn.relative_position_bias_table"]
    assert torch.equal(model.blocks[0].attn.posenc.beit.table, table.T)


# Keys that do not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_values": None}, r"Only in the checkpoint: blocks.0.gamma_1.*init_values="),
        ({"num_classes": 7}, r"head.weight \[5, 16\] instead of \[7, 16\].*num_classes="),
        ({"global_pool": "token"}, "fc_norm.weight.*only in the model: norm.weight.*global_pool"),
        ({"qkv_bias": False}, "q_bias, blocks.0.attn.v_bias.*qkv_bias="),
        ({"pos_embed": "learn"}, 'Only in the model: pos_embed. .*pos_embed="none".*"hide"'),
        ({"depth": 3}, "checkpoint has 2 blocks, the model has 3: create .* depth=2"),
        ({"embed_dim": 24}, "tokens of width 16, the model of width 24: create .*embed_dim=16"),
        ({"num_heads": 4}, r"beit.table \[2, 48\] instead of \[4, 48\]"),
        ({"patch_size": 2, "img_size": (6, 10)}, r"\[16, 3, 4, 4\] instead .*patch_size="),
    ],
)
def test_what_does_not_fit_is_listed(options, message):
    model = patched(plain(**options))
    before = tiny_vit.snapshot(model)
    with pytest.raises(ValueError, match=message):
        load_reference_checkpoint(model, beit_of_timm().state_dict(), source="beit")
    assert tiny_vit.snapshot(model) == before


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("blocks.0.attn.q_bias", torch.sum, r"checkpoint: blocks\.0\.attn\.q_bias.*v_bias"),
        ("pos_embed", lambda value: value[0], r"pos_embed \[16, 16\] instead of \[1, 19, 16\]"),
        ("pos_embed", lambda value: value.repeat(2, 1, 1), r"pos_embed \[2, 16, 16\] instead of"),
        ("patch_embed.proj.weight", torch.sum, r"patch_embed\.proj\.weight \[\] instead of"),
    ],
)
def test_a_layer_with_other_axes(key, change, message):
    state = beit_of_timm(use_abs_pos_emb=True).state_dict()
    state[key] = change(state[key])
    model = patched(plain((24, 12), pos_embed="learn"))
    with pytest.raises(ValueError, match=message):
        load_reference_checkpoint(model, state, source="beit", grid=(3, 5))


def test_half_of_the_biases():
    state = beit_of_timm().state_dict()
    del state["blocks.1.attn.v_bias"]
    with pytest.raises(
        ValueError,
        match=r"checkpoint: blocks\.1\.attn\.q_bias; only in the model: blocks\.1\.attn\.qkv\.bias",
    ):
        load_reference_checkpoint(patched(plain()), state, source="beit")


def test_tables_of_blocks_and_one_for_all():
    state = beit_of_timm(use_shared_rel_pos_bias=True).state_dict()
    with pytest.raises(ValueError, match=r"rel_pos_bias.relative.*and tables of its blocks"):
        load_reference_checkpoint(patched(plain()), state, source="beit")


def test_one_table_for_all_blocks_where_some_are_patched():
    state = beit_of_timm(use_rel_pos_bias=False, use_shared_rel_pos_bias=True).state_dict()
    with pytest.raises(ValueError, match=r"beit in blocks\.1\.attn.*all 2 blocks: patch without"):
        load_reference_checkpoint(patched(plain(), blocks=[1]), state, source="beit")


def test_many_tables_for_one():
    state = beit_of_timm().state_dict()
    with pytest.raises(
        ValueError, match=r"one beit for all.*checkpoint has 2: patch without share"
    ):
        load_reference_checkpoint(patched(plain(), share=True), state, source="beit")


def test_blocks_that_are_not_patched():
    state = beit_of_timm().state_dict()
    with pytest.raises(ValueError, match=r"only the checkpoint has beit in blocks\.0\.attn: patch"):
        load_reference_checkpoint(patched(plain(), blocks=[1]), state, source="beit")
    del state["blocks.0.attn.relative_position_bias_table"]
    with pytest.raises(ValueError, match=r"only the model has beit in blocks\.0\.attn: patch"):
        load_reference_checkpoint(patched(plain()), state, source="beit")
