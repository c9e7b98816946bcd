"""The numbers of a page against attention as the model computes it, without a browser."""

import pytest
import torch
from capture_cases import PREFIXES, patched
from page_reader import Page
from tiny_vit import images, vit
from windowed_models import swin

import posenc
from posenc.analysis import capture_attention, crops_of, split_logits
from posenc.explorer import Exhibit, Picture, make_page
from posenc.registry import encoding_class

ENCODINGS = [
    name
    for name in posenc.list_encodings()
    if issubclass(encoding_class(name), posenc.AttentionEncoding)
]


def picture(model, seed=1):
    (pixels,) = images(model, 1, seed)
    return Picture("x.png", pixels, torch.rand(3, 24, 40))


def page_of(model, *pictures):
    return Page(make_page([Exhibit(model, "tiny", "random weights", pictures)], num_crops=6))


def captured(model, picture):
    with torch.no_grad(), capture_attention(model) as found:
        model(picture.pixels[None])
    return found


def assert_near(actual, expected, share=2e-3):
    """Of the largest weight of each row."""
    error = (actual - expected).abs().amax(dim=-1) / expected.amax(dim=-1)
    assert error.max() < share


@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
def test_total_and_bias_are_those_of_the_model(encoding):
    model = patched(encoding, vit(1))
    seen = picture(model)
    page, expected = page_of(model, seen), captured(model, seen)
    for layer, name in enumerate(expected.attention):
        assert_near(page.weights(0, layer), expected.attention[name][0])
        parts = page.data["subjects"][0]["layers"][layer]["parts"]
        assert bool(parts[0]["biases"]) == (name in expected.bias)
        if name in expected.bias:
            assert_near(page.weights(0, layer, "bias"), expected.bias[name][0].softmax(-1))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_content_and_position_are_those_of_means_over_crops(prefix):
    model = patched("irpe", vit(prefix))
    seen = picture(model)
    page = page_of(model, seen)
    crops = crops_of(seen.pixels, 6)
    for layer, block in enumerate(model.blocks):
        query, key = queries_and_keys(model, block, crops)
        bias = captured(model, seen).bias[f"blocks.{layer}.attn"][0]
        mean_query, mean_key = query.mean(dim=0), key.mean(dim=0)
        position = mean_query @ mean_key.transpose(-2, -1) * 8**-0.5 + bias
        assert_near(page.weights(0, layer, "position"), position.softmax(-1))
        own_query, own_key = queries_and_keys(model, block, seen.pixels[None])
        grand = mean_query[:, prefix:].mean(dim=1, keepdim=True)
        content = (own_query[0] - mean_query + grand) @ (own_key[0] - mean_key).transpose(-2, -1)
        assert_near(page.weights(0, layer, "content"), (content * 8**-0.5).softmax(-1))


def queries_and_keys(model, block, images):
    """`[B, heads, N, head_dim]` each, from the block's own projection."""
    inputs = []
    with torch.no_grad(), hooked(block.attn, inputs):
        model(images)
    packed = block.attn.qkv(inputs[0]).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
    return packed[0].detach(), packed[1].detach()


def hooked(module, inputs):
    return module.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))


def test_shares_distance_and_words():
    model = patched("swin", vit(2))
    seen = picture(model)
    page = page_of(model, seen)
    (own,) = page.data["models"]
    assert (own["name"], own["weights"], own["num_crops"]) == ("tiny", "random weights", 6)
    shares = split_logits(model, crops_of(seen.pixels, 6)).shares
    for layer in own["layers"]:
        assert (layer["height"], layer["width"], layer["heads"]) == (3, 5, 2)
        assert layer["prefix"] == ["CLS", "distillation"]
        for part, values in shares[layer["name"]].items():
            assert layer["shares"][part] == pytest.approx(values.tolist())
    distances = [layer["distance"] for layer in page.data["subjects"][0]["layers"]]
    weights = captured(model, seen).attention["blocks.0.attn"]
    expected = posenc.analysis.mean_attention_distance(weights, posenc.TokenLayout(3, 5, 2))
    assert distances[0] == pytest.approx(expected[0].tolist())


@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_several_images_and_models():
    first, second = vit(1), patched("rope", vit(1))
    pictures = picture(first, 1), picture(first, 2)
    exhibits = [Exhibit(model, "tiny", "random", pictures) for model in (first, second)]
    steps = []
    page = Page(make_page(exhibits, num_crops=6, done=lambda: steps.append(1)))
    assert len(steps) == 6
    assert [seen["model"] for seen in page.data["subjects"]] == [0, 0, 1, 1]
    for subject, (model, seen) in enumerate((m, p) for m in (first, second) for p in pictures):
        expected = captured(model, seen).attention["blocks.1.attn"][0]
        assert_near(page.weights(subject, 1), expected)


def test_layers_of_the_whole_image_only():
    """Of Swin's stages the last has a single window."""
    model = swin(img_size=(8, 16)).eval()
    seen = picture_of_size(model)
    page = page_of(model, seen)
    (own,) = page.data["models"]
    expected = captured(model, seen).attention
    whole = [name for name, weights in expected.items() if len(weights) == 1]
    assert 0 < len(whole) < len(expected)
    assert [layer["name"] for layer in own["layers"]] == whole
    for layer, name in enumerate(whole):
        assert_near(page.weights(0, layer), expected[name][0])
    assert sum("windows, not the whole image" in note for note in own["notes"]) == len(
        expected
    ) - len(whole)


def picture_of_size(model):
    pixels = torch.randn(3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    return Picture("x.png", pixels.to(next(model.parameters()).dtype), torch.rand(3, 32, 32))


def test_numbers_of_any_size():
    """Queries far beyond what 16 bits hold, and keys that hardly differ."""
    model = vit(1)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:16] *= 1e6
        model.blocks[0].attn.qkv.weight[16:32] *= 1e-6
    seen = picture(model)
    assert_near(
        page_of(model, seen).weights(0, 0), captured(model, seen).attention["blocks.0.attn"][0]
    )


def test_refusals():
    model = vit(1)
    seen = picture(model)
    with pytest.raises(ValueError, match="no pictures were given for tiny"):
        page_of(model)
    with pytest.raises(ValueError, match="training mode"):
        page_of(model.train(), seen)
    for count in (1, 4, True, 6.0):
        with pytest.raises(ValueError, match="num_crops must be at least 5, got"):
            make_page([Exhibit(model.eval(), "tiny", "random", [seen])], num_crops=count)
    with pytest.raises(TypeError, match="pixels of x must be a floating point tensor"):
        page_of(model, Picture("x", seen.pixels.int(), seen.shown))
    with pytest.raises(ValueError, match=r"pixels of x must be \[channels, height, width\]"):
        page_of(model, Picture("x", seen.pixels[None], seen.shown))
    for shown in (2 * torch.ones(3, 4, 4), torch.ones(1, 4, 4), torch.full((3, 4, 4), torch.nan)):
        with pytest.raises(ValueError, match=r"shown of x must be \[3, height, width\]"):
            page_of(model, Picture("x", seen.pixels, shown))
    with pytest.raises(ValueError, match="found no model that posenc knows in Linear"):
        page_of(torch.nn.Linear(3, 3).eval(), seen)


@pytest.mark.parametrize("name", ["</script><b>.png", "<!--<script>.png"])
def test_a_page_cannot_be_broken_by_names(name):
    model = vit(1)
    seen = Picture(name, picture(model).pixels, torch.rand(3, 8, 8))
    text = make_page([Exhibit(model, "tiny", "random", [seen])], num_crops=6)
    assert name.encode() not in text
    assert Page(text).data["subjects"][0]["image"]["name"] == seen.name
