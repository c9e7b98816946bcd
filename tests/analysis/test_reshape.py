"""Tokens as maps: each patch stays at its place."""

import beyond_timm
import pytest
import tiny_vit
import torch
import windowed_models
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from posenc import TokenLayout, patch_model
from posenc.analysis import block_tokens, reshape_transform


def numbered(layout, channels=4):
    """The token of the patch at (y, x) is [image, y, x, ...]; that of a prefix token -1."""
    tokens = torch.full((2, layout.num_tokens, channels), -1.0)
    for image in range(2):
        for patch in range(layout.num_grid):
            place = [float(image), *map(float, divmod(patch, layout.width))]
            tokens[image, layout.prefix + patch] = torch.tensor([*place, *[7.0] * (channels - 3)])
    return tokens


def assert_places(maps, height, width):
    assert maps.shape == (2, 4, height, width)
    for image in range(2):
        for y in range(height):
            for x in range(width):
                assert maps[image, :, y, x].tolist() == [image, y, x, 7]


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("encoding", [None, "swin"])
def test_every_patch_stays_at_its_place(prefix, encoding):
    model = tiny_vit.vit(prefix)
    if encoding is not None:
        patch_model(model, encoding)
    assert_places(reshape_transform(model)(numbered(TokenLayout(3, 5, prefix))), 3, 5)
    assert_places(reshape_transform(model)((numbered(TokenLayout(3, 5, prefix)), None)), 3, 5)


def test_the_layout_is_that_of_the_call():
    model = tiny_vit.vit(1)
    transform = reshape_transform(model)
    model.set_input_size((20, 8))
    assert_places(transform(numbered(TokenLayout(5, 2, 1))), 5, 2)
    model = patch_model(tiny_vit.vit(1, dynamic_img_size=True), "swin")
    transform = reshape_transform(model)
    for size, grid in (((8, 24), (2, 6)), ((24, 8), (6, 2))):
        model(torch.rand(1, 3, *size, dtype=torch.float64))
        assert_places(transform(numbered(TokenLayout(*grid, 1))), *grid)
    plain = tiny_vit.vit(1, dynamic_img_size=True)
    with pytest.raises(ValueError, match="nothing tells the grid of the latest image"):
        reshape_transform(plain)
    transform = reshape_transform(plain, layout=TokenLayout(6, 2, 1))
    assert_places(transform(numbered(TokenLayout(6, 2, 1))), 6, 2)


def test_maps_of_windowed_models_are_turned():
    model = windowed_models.swin().eval()
    kept = []
    model.layers[0].register_forward_hook(lambda module, args, result: kept.append(result))
    model(torch.rand(2, 3, 12, 20))
    assert reshape_transform(model)(kept[0]).shape == (2, 8, 6, 10)
    sam = VisionTransformerSAM(
        img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=0, neck_chans=8
    )
    maps = numbered(TokenLayout(4, 4)).view(2, 4, 4, 4)
    assert_places(reshape_transform(sam, layout=TokenLayout(4, 4))(maps), 4, 4)
    with pytest.raises(ValueError, match="have grids of their own"):
        reshape_transform(windowed_models.hiera())


def test_outside_timm():
    model = beyond_timm.torch_encoder().eval()
    layout = TokenLayout(3, 4, 1)
    with pytest.raises(ValueError, match="the layout of its tokens is not known"):
        reshape_transform(model)
    assert_places(reshape_transform(model, layout)(numbered(layout)), 3, 4)


def test_blocks_of_hugging_face_are_found():
    model = beyond_timm.build("hf_vit").eval()
    parameter = next(model.parameters())
    kept = block_tokens(model, torch.rand(2, 3, 12, 20, dtype=parameter.dtype))
    assert len(kept.tokens) == model.config.num_hidden_layers
    assert kept.layout == TokenLayout(3, 5, 1)
    assert reshape_transform(model)(list(kept.tokens.values())[-1]).shape == (2, 8, 3, 5)


def test_errors():
    transform = reshape_transform(tiny_vit.vit(1))
    for wrong, error, message in [
        (torch.rand(2, 15, 4), ValueError, r"expected \[B, 16, C\], the tokens of 3x5 \+ 1 prefix"),
        (torch.rand(16, 4), ValueError, r"got \[16, 4\]"),
        (torch.rand(1, 5, 3, 4), ValueError, r"got \[1, 5, 3, 4\]"),
        (None, TypeError, "expected a tensor, got NoneType"),
        ((), TypeError, "expected a tensor, got tuple"),
    ]:
        with pytest.raises(error, match=message):
            transform(wrong)
    with pytest.raises(ValueError, match=r"put out \[B, height, width, C\], got \[1, 6, 8\]"):
        reshape_transform(windowed_models.swin())(torch.rand(1, 6, 8))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        reshape_transform(None)
    with pytest.raises(ValueError, match="found no model that posenc knows"):
        reshape_transform(nn.Linear(2, 2))


def cam_model():
    model = patch_model(tiny_vit.vit(5, dtype=torch.float32), "swin")
    return model, tiny_vit.images(model), reshape_transform(model)


def grad_cam(model, images, target):
    """Of the class, at the input of the last block's attention: `[B, 3, 5]`."""
    kept = []

    def keep(module, args, result):
        result.retain_grad()
        kept.append(result)

    handle = model.blocks[-1].norm1.register_forward_hook(keep)
    model(images)[:, target].sum().backward()
    handle.remove()
    (tokens,) = kept
    weights = tokens.grad[:, 5:].mean(1, keepdim=True)
    return (weights * tokens[:, 5:]).sum(-1).relu().detach().view(-1, 3, 5)


def normalized(maps):
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def test_in_pytorch_grad_cam():
    package = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, images, transform = cam_model()
    layer = model.blocks[-1].norm1
    with package.GradCAM(model, [layer], reshape_transform=transform) as cam:
        cam(images, targets=[targets.ClassifierOutputTarget(2)] * 2)
        activations = cam.activations_and_grads.activations[0]
        maps = cam.get_cam_image(
            images, layer, None, activations.numpy(),
            cam.activations_and_grads.gradients[0].numpy(), False,
        )  # fmt: skip
    expected = grad_cam(model, images, 2)
    torch.testing.assert_close(torch.from_numpy(maps).relu(), expected, rtol=1e-4, atol=1e-6)


def test_in_captum():
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    model, images, transform = cam_model()
    layer = model.blocks[-1].norm1
    kept = transform(attr.LayerActivation(model, layer).attribute(images))
    product = transform(attr.LayerGradientXActivation(model, layer).attribute(images, target=2))
    weights = (product / kept).mean((2, 3), keepdim=True)
    maps = (weights * kept).sum(1).relu()
    expected = grad_cam(model, images, 2)
    torch.testing.assert_close(maps.detach(), expected, rtol=1e-3, atol=1e-5)


class ThroughMaps(nn.Module):
    """A layer followed by its maps, for packages that hook a layer that puts out maps."""

    def __init__(self, layer, transform):
        super().__init__()
        self.layer, self.transform, self.maps = layer, transform, nn.Identity()

    def forward(self, x):
        tokens = self.layer(x)
        maps = self.maps(self.transform(tokens))
        prefix = tokens[:, : tokens.shape[1] - maps[0, 0].numel()]
        return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], dim=1)


def test_in_torchcam():
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    model, images, transform = cam_model()
    expected = grad_cam(model, images, 2)
    block = model.blocks[-1]
    block.norm1 = ThroughMaps(block.norm1, transform)
    with methods.GradCAM(model, target_layer=block.norm1.maps) as cam:
        (maps,) = cam(2, model(images))
    torch.testing.assert_close(maps, normalized(expected), rtol=1e-4, atol=1e-5)
