"""The split of logits of whole models: against attention written out, and on built models."""

import itertools

import pytest
import tiny_vit
import tiny_windowed
import torch
import windowed_models
from random_encodings import randomize_encodings
from timm.models.eva import Eva
from torch import nn

import posenc
from posenc import patch_model, patched_encodings
from posenc.analysis import crops_of, split_logits

PARTS = [f"{x}.{y}" for x in ("content", "position", "mean") for y in ("content", "position")]


def images_of(model, batch=6, seed=1):
    return tiny_vit.images(model, batch, seed)


def queries_and_keys(model, images):
    """name -> (q, k) as they enter the scores, and their bias."""
    found = {}

    def note(name, q, k):
        found[name] = (q, k)
        return 0.0

    with torch.no_grad():
        tiny_vit.eager(model, images, note)
    return found


def means_over_choices(x, y):
    """`[choices, n, n]`-free: the mean over four different others of the product of two logits.

    `x` and `y` are `[others, n, D]`: one side of the logit with the mean of each other image.
    """
    total, count = 0.0, 0
    for a, b, c, d in itertools.permutations(range(len(x)), 4):
        total, count = total + ((x[a] @ y[c].T) * (x[b] @ y[d].T)).mean(), count + 1
    return total / count


def part_of(q, k, x_name, y_name):
    """Of one head: q, k `[B, n, D]`, every image a group of its own."""
    k = k - k.mean(1, keepdim=True)
    values = []
    for image in range(len(q)):
        others = [i for i in range(len(q)) if i != image]
        grand = q[others].mean(1, keepdim=True).expand_as(q[others])
        xs = {"content": q[image] - q[others], "position": q[others] - grand, "mean": grand}
        ys = {"content": k[image] - k[others], "position": k[others]}
        values.append(means_over_choices(xs[x_name], ys[y_name]))
    return torch.stack(values).mean()


def variance(logits):
    return (logits - logits.mean(-1, keepdim=True)).square().mean(dim=(0, 2, 3))


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_as_written_out(prefix):
    model = tiny_vit.vit(prefix)
    images = images_of(model)
    expected = queries_and_keys(model, images)
    patch_model(model, "swin")
    randomize_encodings(model)
    # The bias changes what comes after the first block, whose queries and keys are as before.
    split = split_logits(model, images, blocks=[0], batch_size=4)
    q, k = (x[:, :, prefix:] for x in expected["blocks.0.attn"])
    table = patched_encodings(model)["blocks.0.attn.swin"]
    layout = posenc.TokenLayout(3, 5, prefix)
    full = torch.zeros(1, 2, layout.num_tokens, 8, dtype=torch.float64)
    with torch.no_grad():
        bias = table(full, full, layout)[0].dense()[..., prefix:, prefix:]
    scale = 8**-0.5
    total = variance(scale * q @ k.mT + bias)
    (name,) = split.shares
    shares = split.shares[name]
    assert list(shares) == [*PARTS, "native_bias", "bias", "interaction"]
    torch.testing.assert_close(split.variance[name], total)
    torch.testing.assert_close(shares["bias"], variance(bias) / total)
    assert not shares["native_bias"].any()
    for part, head in itertools.product(PARTS, range(2)):
        expected_part = scale**2 * part_of(q[:, head], k[:, head], *part.split("."))
        torch.testing.assert_close(shares[part][head], expected_part / total[head])
    torch.testing.assert_close(sum(shares.values()), torch.ones(2, dtype=torch.float64))
    assert split.layouts == {name: layout}
    assert (split.num_images, split.approximate, split.left_out) == (6, False, {})


class Identity(nn.Module):
    def forward(self, x):
        return x


def transparent(table):
    """One block whose queries and keys are its tokens: 16 pixels of a patch, and the table."""
    model = tiny_vit.vit(0, depth=1, num_heads=1)
    block = model.blocks[0]
    block.norm1 = Identity()
    model.pos_embed.data.copy_(table)
    weights = torch.zeros_like(model.patch_embed.proj.weight)
    weights[:, 0] = torch.eye(16).view(16, 4, 4)
    model.patch_embed.proj.weight.data.copy_(weights)
    model.patch_embed.proj.bias.data.zero_()
    eye = torch.eye(16, dtype=torch.float64)
    block.attn.qkv.weight.data.copy_(torch.cat([eye, eye, eye]))
    block.attn.qkv.bias.data.zero_()
    return model


def test_a_planted_table_has_its_share():
    """Pixels are independent of each other, with variance 1: all but one part has a formula."""
    generator = torch.Generator().manual_seed(0)
    table = 0.5 * torch.randn(15, 16, generator=generator, dtype=torch.float64) + 0.2
    model = transparent(table)
    split = split_logits(model, images_of(model, batch=300))
    measured = {
        part: (share * split.variance["blocks.0.attn"]).item() * 16  # the scale is 1 / 4
        for part, share in split.shares["blocks.0.attn"].items()
    }
    grand = table.mean(0)
    place = table - grand
    expected = {
        "position.position": (place @ place.T).square().mean().item(),
        "position.content": place.square().sum(-1).mean().item() * 14 / 15,
        "content.position": place.square().sum(-1).mean().item(),
        "mean.position": (place @ grand).square().mean().item(),
        "mean.content": (grand @ grand).item() * 14 / 15,
    }
    for part, value in expected.items():
        assert measured[part] == pytest.approx(value, rel=0.06), part


def test_without_images_all_is_position_and_without_table_none():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(15, 16, generator=generator, dtype=torch.float64)
    model = transparent(table)
    flat = torch.zeros_like(images_of(model))
    shares = split_logits(model, flat).shares["blocks.0.attn"]
    for part in PARTS[:3] + PARTS[4:5]:
        assert shares[part].abs() < 1e-12
    place = table - table.mean(0)
    alone = (place @ place.T).square().sum() / (table @ place.T).square().sum()
    torch.testing.assert_close(shares["position.position"], alone[None])
    assert shares["interaction"].abs() < 1e-12
    model = transparent(torch.zeros(15, 16))
    shares = split_logits(model, images_of(model, batch=200)).shares["blocks.0.attn"]
    for part in PARTS[1:]:
        assert shares[part].abs() < 5e-3, part
    assert shares["content.content"].item() == pytest.approx(1.0, abs=0.01)


def test_turned_queries_are_split_as_they_are_and_the_turning_is_named():
    model = tiny_vit.vit(1, depth=1)
    images = images_of(model)
    q, k = queries_and_keys(model, images)["blocks.0.attn"]
    with pytest.warns(UserWarning, match="other outputs"):
        patch_model(model, "rope")
    split = split_logits(model, images)
    (turn,) = patched_encodings(model)["blocks.0.attn.rope"](q, k, posenc.TokenLayout(3, 5, 1))
    turned = [turn.apply(x)[:, :, 1:] for x in (q, k)]
    shares = split.shares["blocks.0.attn"]
    logits = 8**-0.5 * turned[0] @ turned[1].mT
    unturned = 8**-0.5 * q[:, :, 1:] @ k[:, :, 1:].mT
    total = variance(logits)
    torch.testing.assert_close(split.variance["blocks.0.attn"], total)
    torch.testing.assert_close(split.rotation["blocks.0.attn"], variance(logits - unturned) / total)
    for part, head in itertools.product(PARTS, range(2)):
        expected = part_of(turned[0][:, head], turned[1][:, head], *part.split(".")) / 8
        torch.testing.assert_close(shares[part][head], expected / total[head])
    assert "blocks.0.attn" not in split_logits(tiny_vit.vit(1, depth=1), images).rotation


def test_the_models_own_rotary_embedding_is_named():
    model = Eva(
        img_size=(12, 20), patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_ratio=2.0,
        use_rot_pos_emb=True, num_classes=3,
    ).eval()  # fmt: skip
    split = split_logits(model, torch.randn(5, 3, 12, 20))
    (note,) = split.notes
    assert note.startswith("rotary embedding rope of the model: queries and keys are read after")
    assert split_logits(tiny_vit.vit(depth=1), images_of(tiny_vit.vit())).notes == ()


def test_windows_and_the_models_own_bias():
    model = windowed_models.swin().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    split = split_logits(model, torch.randn(6, 3, 12, 20, dtype=torch.float64), batch_size=3)
    names = ["layers.0.blocks.0.attn", "layers.0.blocks.1.attn"]
    own = model.layers[0].blocks[0].attn
    with torch.no_grad():
        expected = variance(own._get_rel_pos_bias())
    measured = split.shares[names[0]]["native_bias"] * split.variance[names[0]]
    torch.testing.assert_close(measured, expected)
    # The mask of shifted windows hides pairs at -100: no bias of theirs is counted.
    assert (split.shares[names[1]]["native_bias"] * split.variance[names[1]] < 1).all()
    for shares in split.shares.values():
        torch.testing.assert_close(sum(shares.values()), torch.ones_like(shares["bias"]))


def test_a_bias_that_reads_queries_counts_over_images():
    model = tiny_vit.vit(2, depth=1)
    images = images_of(model)
    q, k = queries_and_keys(model, images)["blocks.0.attn"]
    patch_model(model, "irpe")
    randomize_encodings(model)
    layout = posenc.TokenLayout(3, 5, 2)
    with torch.no_grad():
        (term,) = patched_encodings(model)["blocks.0.attn.irpe"](q, k, layout)
    split = split_logits(model, images, batch_size=5)
    expected = variance(term.dense()[..., 2:, 2:])
    measured = split.shares["blocks.0.attn"]["bias"] * split.variance["blocks.0.attn"]
    torch.testing.assert_close(measured, expected)


def test_one_image_becomes_crops_and_says_so():
    model = tiny_vit.vit(1, depth=1)
    image = images_of(model, batch=1)
    split = split_logits(model, image)
    crops = split_logits(model, crops_of(image))
    assert (split.approximate, split.num_images) == (True, 30)
    assert (crops.approximate, crops.num_images) == (False, 30)
    for part, share in split.shares["blocks.0.attn"].items():
        assert torch.equal(share, crops.shares["blocks.0.attn"][part])


def test_batches_do_not_matter_and_blocks_select():
    model = tiny_vit.vit(5)
    images = images_of(model, batch=7)
    whole = split_logits(model, images, batch_size=100)
    assert list(whole.shares) == ["blocks.0.attn", "blocks.1.attn"]
    one = split_logits(model, images, batch_size=1, blocks=lambda name: "1" in name)
    assert list(one.shares) == ["blocks.1.attn"]
    for part, share in one.shares["blocks.1.attn"].items():
        torch.testing.assert_close(share, whole.shares["blocks.1.attn"][part])


def test_a_head_that_sees_one_key_has_no_shares():
    """A wide table leaves each query its own key: logits do not vary over the keys it sees."""
    model = patch_model(tiny_vit.vit(0), "swin")
    with torch.no_grad():
        encoding = patched_encodings(model)["blocks.1.attn.swin"]
        encoding.table.fill_(-1e4)
        encoding.table[:, encoding.table.shape[1] // 2] = 0.0  # the offset of zero
    shares = split_logits(model, images_of(model))
    assert all(part.isnan().all() for part in shares.shares["blocks.1.attn"].values())
    assert not any(part.isnan().any() for part in shares.shares["blocks.0.attn"].values())


def test_mixed_attention_has_no_one_logit():
    model = tiny_vit.vit(1, depth=1)
    with pytest.warns(UserWarning, match="other outputs"):
        patch_model(model, "convit")
    split = split_logits(model, images_of(model))
    assert split.shares == {}
    assert split.left_out == {
        "blocks.0.attn": "it mixes two attentions, so that there is no one logit"
    }


def test_errors():
    model = tiny_vit.vit()
    images = images_of(model)
    for wrong, options, error, message in [
        (images[:4], {}, ValueError, "4 images are too few.*at least 5, better 30, or one image"),
        (images[0], {}, ValueError, r"images must be \[B, 3, H, W\], got \[3, 12, 20\]"),
        (images.int(), {}, TypeError, "floating point tensor, got torch.int32"),
        ([1], {}, TypeError, "floating point tensor, got list"),
        (images, {"batch_size": 0}, ValueError, "batch_size must be a positive int, got 0"),
        (images, {"blocks": [7]}, ValueError, "7 is not an index of the model's 2 attention"),
        (images, {"blocks": lambda name: False}, ValueError, "selects none of the 2 attention"),
    ]:
        with pytest.raises(error, match=message):
            split_logits(model, wrong, **options)
    with pytest.raises(ValueError, match=r"training mode.*model\.eval"):
        split_logits(model.train(), images)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        split_logits("model", images)


def test_crops():
    image = torch.rand(3, 12, 20)
    state = torch.get_rng_state()
    crops = crops_of(image, 6, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert crops.shape == (6, 3, 12, 20)
    assert torch.equal(crops, crops_of(image[None], 6, seed=3))
    assert not torch.equal(crops, crops_of(image, 6, seed=4))
    assert len(crops.flatten(1).unique(dim=0)) == 6
    ramp = torch.arange(20.0).expand(1, 12, 20)
    slopes = crops_of(ramp, 4)[:, 0, 5].diff(dim=-1)[:, 5:-5]
    assert (slopes[::2] > 0.4).all()
    assert (slopes[1::2] < -0.4).all()  # every other one is mirrored
    for wrong, options, error, message in [
        (image[0], {}, ValueError, r"must be \[3, H, W\] or \[1, 3, H, W\]"),
        (torch.rand(2, 3, 4, 4), {}, ValueError, r"got \[2, 3, 4, 4\]"),
        (image.int(), {}, TypeError, "floating point tensor, got torch.int32"),
        (image, {"count": 0}, ValueError, "count must be a positive integer, got 0"),
    ]:
        with pytest.raises(error, match=message):
            crops_of(wrong, **options)


FAMILIES = ["swin", "davit", "maxvit", "nest", "twins_svt", "visformer", "volo", "crossvit"]


@pytest.mark.parametrize("name", FAMILIES)
def test_windows_of_an_image_follow_each_other(name):
    """Otherwise the places of an image would depend on the images beside it."""
    model = tiny_windowed.build(name)
    images = tiny_windowed.images(name, batch=13)
    together, alone = (split_logits(model, images, batch_size=size) for size in (8, 1))
    assert together.shares
    assert together.left_out == alone.left_out
    for module, shares in together.shares.items():
        for part, share in shares.items():
            torch.testing.assert_close(share, alone.shares[module][part])
