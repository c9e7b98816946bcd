"""Images of every form are drawn as they are, and others are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from posenc import TokenLayout
from posenc.analysis.plot.picture import check_fits, to_picture

COLORS = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
GRAY = COLORS[..., 0]


def tensor(array):
    return torch.from_numpy(array.copy())


FORMS = {
    "array": COLORS,
    "array of floats": COLORS / 255,
    "array of 16 bits": (COLORS / 255).astype(np.float16),
    "channels first": COLORS.transpose(2, 0, 1),
    "tensor": tensor(COLORS).permute(2, 0, 1),
    "tensor of floats": tensor(COLORS).permute(2, 0, 1) / 255,
    "tensor, channels last": tensor(COLORS),
    "with a graph": (tensor(COLORS) / 255).requires_grad_(),
    "read only": np.broadcast_to(COLORS, COLORS.shape),
    "PIL": Image.fromarray(COLORS),
}


@pytest.mark.parametrize("form", FORMS)
def test_colors(form):
    picture = to_picture(FORMS[form], "plot")
    assert (picture.shape, picture.dtype) == ((4, 6, 3), np.float32)
    np.testing.assert_allclose(picture, COLORS / 255, atol=1e-3 if "16" in form else 1e-6)


@pytest.mark.parametrize(
    "form",
    [GRAY, GRAY[..., None], GRAY[None], tensor(GRAY), tensor(GRAY)[None], Image.fromarray(GRAY)],
)
def test_gray(form):
    expected = np.repeat(GRAY[..., None] / 255, 3, axis=2)
    np.testing.assert_allclose(to_picture(form, "plot"), expected, atol=1e-6)


def test_where_both_ends_may_be_channels_a_tensor_has_them_first_and_an_array_last():
    square = np.random.default_rng(1).random((3, 5, 3))
    np.testing.assert_allclose(to_picture(square, "plot"), square, rtol=1e-6)
    first = to_picture(torch.from_numpy(square), "plot")
    np.testing.assert_allclose(first, square.transpose(1, 2, 0), rtol=1e-6)


def test_a_normalized_image_is_restored():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    normalized = (COLORS / 255 - mean) / std
    picture = to_picture(normalized, "plot", mean, std)
    np.testing.assert_allclose(picture, COLORS / 255, atol=1e-6)


def test_what_resampling_adds_is_cut():
    picture = to_picture(np.array([[-0.01, 0.5], [1.015, 1.0]]), "plot")
    assert (picture.min(), picture.max()) == (0, 1)


@pytest.mark.parametrize(
    ("image", "options", "error", "words"),
    [
        (COLORS / 255 * 4 - 2, {}, ValueError, r"numbers from -2 to 2, .*needs mean= and std="),
        (COLORS * 1.0, {}, ValueError, "numbers from 0 to 255, .* of 0 to 255 must be uint8"),
        (COLORS / 255, {"mean": (2, 2, 2), "std": (1, 1, 1)}, ValueError, "those of the model"),
        (COLORS, {"mean": (0, 0, 0)}, ValueError, "mean and std go together"),
        (np.full((4, 4, 3), np.nan), {}, ValueError, "numbers from nan"),
        (COLORS.astype(np.int64), {}, TypeError, r"must be uint8 .* got torch.int64"),
        (COLORS[None], {}, ValueError, r"got the batch \[1, 4, 6, 3\]: pass images\[i\]"),
        (COLORS[..., :2], {}, ValueError, r"must be \[3 or 1, H, W\] .* got \[4, 6, 2\]"),
        (np.zeros((0, 6, 3)), {}, ValueError, r"got \[0, 6, 3\]"),
        ("cat.jpg", {}, TypeError, "must be a tensor, an array or a PIL image, got str"),
        (None, {}, TypeError, "got NoneType"),
    ],
)
def test_other_images(image, options, error, words):
    with pytest.raises(error, match=f"^plot: .*{words}"):
        to_picture(image, "plot", **options)


LAYOUT = TokenLayout(3, 5, prefix=1)


def picture(height, width):
    return np.zeros((height, width, 3))


@pytest.mark.parametrize(
    ("height", "width", "patch_size"),
    [(12, 20, None), (300, 500, None), (13, 20, None), (12, 20, 4), (24, 20, (8, 4))],
)
def test_images_that_fit(height, width, patch_size):
    check_fits(picture(height, width), LAYOUT, patch_size, "plot")


@pytest.mark.parametrize(
    ("height", "width", "patch_size", "words"),
    [
        (480, 640, None, "480x640, .* 3x5 patches would be 160x128 pixels: pass the image as the"),
        (20, 12, None, "after resizing and cropping"),
        (24, 40, 4, "24x40, and 3x5 patches of 4x4 are 12x20: pass the image as the model saw it"),
        (12, 20, (8, 4), "patches of 8x4 are 24x20"),
    ],
)
def test_images_of_another_size(height, width, patch_size, words):
    with pytest.raises(ValueError, match=f"^plot: the image is .*{words}"):
        check_fits(picture(height, width), LAYOUT, patch_size, "plot")
