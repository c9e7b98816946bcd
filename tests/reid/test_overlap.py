"""Overlapping patches, and the table that is resized for them."""

import json
from types import SimpleNamespace

import golden_cases
import pytest
import timm
import tiny_reid
import torch
from model.network import build_network, set_size
from model.patches import grid_of, overlap, set_image_size

import posenc

TABLE = {**tiny_reid.VIT, "pos_embed": "learn"}
LARGER = {"height": 64, "width": 32}
BEIT = {
    "vit": "beit_base_patch16_224",
    "vit_args": '{"depth": 1, "embed_dim": 32, "num_heads": 2}',
}


def vit_with(size, patch=8, **options):
    options = {"embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 0, **options}
    return timm.create_model("vit_tiny_patch16_224", img_size=size, patch_size=patch, **options)


def test_counts_equal_transreid():
    golden = golden_cases.case("transreid_overlap_counts")
    for *size, patch, down, right, rows, columns, count in golden["rows"].tolist():
        projection = SimpleNamespace(stride=(down, right))
        embedding = SimpleNamespace(patch_size=(patch, patch), proj=projection)
        assert grid_of(embedding, tuple(size)) == (rows, columns)
        assert rows * columns == count


def test_tokens_equal_transreid():
    golden = golden_cases.case("transreid_overlap_32x16_s6")
    vit = vit_with((32, 16), embed_dim=6).double()
    overlap(vit, 6)
    set_image_size(vit, (32, 16))
    vit.patch_embed.proj.load_state_dict({k: golden[k] for k in ("weight", "bias")})
    torch.testing.assert_close(vit.patch_embed(golden["x"]), golden["tokens"], atol=1e-5, rtol=0)
    assert vit.patch_embed.num_patches == 10 == vit.pos_embed.shape[1] - 1


@pytest.mark.parametrize("name", golden_cases.names("abs_resample_transreid"))
def test_the_table_equals_transreid(name):
    golden = golden_cases.case(name)
    old, new = (golden.hyperparameters[key] for key in ("old", "new_h_w"))
    vit = vit_with([8 * side for side in old]).double()
    vit.pos_embed.data.copy_(golden["pos_embed"])
    set_image_size(vit, tuple(8 * side for side in new), "bilinear")
    torch.testing.assert_close(vit.pos_embed.detach(), golden["out"], **golden.close)


def test_bicubic_is_that_of_timm():
    ours, theirs = vit_with((32, 32)), vit_with((32, 32))
    theirs.load_state_dict(ours.state_dict())
    set_image_size(ours, (48, 24))
    theirs.set_input_size((48, 24))
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed)
    images = torch.randn(1, 3, 48, 24)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("encoding", ["none", "learned", "irpe+peg", "human_part", "rope"])
@pytest.mark.parametrize("own", [TABLE, {**TABLE, "no_embed_class": True}, tiny_reid.VIT])
def test_encodings_on_overlapping_patches(encoding, own):
    changes = {"vit_args": json.dumps({**own, "embed_dim": 32}), "encoding": encoding}
    network = build_network(tiny_reid.config(stride=6, height=33, width=20, **changes), 4).eval()
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(network.vit) if encoding != "none" else ():
            parameter.normal_()
    seen = []
    hook = network.vit.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert network(torch.zeros(1, 3, 33, 20, dtype=torch.uint8)).shape == (1, 32)
    assert seen[0].shape == (1, 1 + 5 * 3, 32)
    hook.remove()
    if encoding != "none":
        layouts = {one.layout.grid for one in posenc.patched_encodings(network.vit).values()}
        assert layouts == {(5, 3)}
    set_size(network.vit, (45, 26))
    assert network(torch.zeros(1, 3, 45, 26, dtype=torch.uint8)).shape == (1, 32)
    assert network.vit.patch_embed.grid_size == (7, 4)


def test_a_file_of_square_images(tmp_path):
    """Its table is resized once, from the grid that it was made for to that of the overlap."""
    file = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=8, num_heads=2)
    torch.nn.init.normal_(file.pos_embed)
    torch.save(file.state_dict(), tmp_path / "vit.pth")
    vit = json.dumps({"depth": 1, "embed_dim": 8, "num_heads": 2})
    size = {"height": 256, "width": 128, "weights": str(tmp_path / "vit.pth"), "pool": "token"}
    for mode in ("bilinear", "bicubic"):
        config = tiny_reid.config(
            vit_args=vit, stride=12, table_resize=mode, encoding="none", **size
        )
        own = build_network(config, 4).vit.pos_embed
        table = file.pos_embed[:, 1:].mT.unflatten(2, (14, 14))
        expected = torch.nn.functional.interpolate(
            table, size=(21, 10), mode=mode, antialias=mode == "bicubic"
        )
        torch.testing.assert_close(own[:, 1:], expected.flatten(2).mT)
        torch.testing.assert_close(own[:, :1], file.pos_embed[:, :1])


def test_the_table_follows_the_size_of_the_crops():
    """From the size that tables are made for, in the way that was asked for."""
    changes = {"vit_args": json.dumps(TABLE), "encoding": "none"}
    first = build_network(tiny_reid.config(**changes), 4).vit.pos_embed
    changes |= {"table_height": 32, "table_width": 16, "height": 48, "width": 24}
    own = build_network(tiny_reid.config(table_resize="bilinear", **changes), 4).vit.pos_embed
    table = first[:, 1:].mT.unflatten(2, (4, 2))
    expected = torch.nn.functional.interpolate(table, size=(6, 3), mode="bilinear")
    torch.testing.assert_close(own[:, 1:], expected.flatten(2).mT)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"stride": 9}, r"a stride of 9 leaves gaps between patches of \(8, 8\) pixels"),
        ({"stride": 4, "height": 6}, r"images of \(6, 16\) pixels are smaller than \(8, 8\)"),
        (
            {"stride": 4, "vit_args": json.dumps({**TABLE, "dynamic_img_size": True})},
            "needs a model of one image size; leave dynamic_img_size",
        ),
        (
            {"stride": 4, "vit": "vit_tiny_r_s16_p8_224", "vit_args": "{}", **LARGER},
            "are cut by HybridEmbed, which has no stride of its own; leave --stride out",
        ),
        ({"stride": 4, **BEIT}, "plain vision transformer of timm, and this is a Beit"),
    ],
)
def test_models_without_overlap(changes, rule):
    with pytest.raises(ValueError, match=rule):
        build_network(tiny_reid.config(encoding="none", **changes), 4)
