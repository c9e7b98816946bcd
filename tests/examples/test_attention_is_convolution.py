"""Attention over places equals convolutions, to rounding."""

import attention_is_convolution as example
import pytest
import torch
import torch.nn.functional as F

RANDOM = {"dtype": torch.float64}
SURE = 40.0  # e^-40 is below the rounding of float64


def image_and_kernel(height, width, size):
    torch.manual_seed(size + height)
    return torch.randn(2, 3, height, width, **RANDOM), torch.randn(4, 3, size, size, **RANDOM)


@pytest.mark.parametrize(("grid", "size"), [((7, 10), 3), ((9, 6), 5), ((3, 8), 1)])
def test_heads_of_pixels_are_a_convolution_with_replicate_padding(grid, size):
    image, kernel = image_and_kernel(*grid, size)
    reach = size // 2
    expected = F.conv2d(F.pad(image, [reach] * 4, mode="replicate"), kernel)
    out = example.pixel_attention(image, kernel, SURE)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_zero_padding_differs_at_the_border_only():
    image, kernel = image_and_kernel(7, 10, 3)
    zeros = F.conv2d(image, kernel, padding=1)
    errors = (example.pixel_attention(image, kernel, SURE) - zeros).abs().amax(dim=(0, 1))
    assert errors[1:-1, 1:-1].max() < 1e-12
    errors[1:-1, 1:-1] = 1.0
    assert errors.min() > 0.1


# The last kernel reaches two patches, and beyond the grid: 25 heads, some of which see no patch.
@pytest.mark.parametrize(
    ("grid", "size", "patch", "heads"),
    [((12, 20), 5, 4, 9), ((6, 10), 3, 2, 9), ((8, 4), 7, 4, 9), ((2, 8), 7, 2, 25)],
)
def test_heads_of_patches_are_a_convolution_with_zero_padding(
    grid, size, patch, heads, monkeypatch
):
    image, kernel = image_and_kernel(*grid, size)
    used = []
    attend = example.attend_to_places
    monkeypatch.setattr(
        example,
        "attend_to_places",
        lambda values, *rest: used.append(values.shape[1]) or attend(values, *rest),
    )
    out = example.patch_attention(image, kernel, patch, SURE)
    expected = F.conv2d(image, kernel, padding=size // 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    assert used == [heads]


def test_errors_fall_with_alpha_as_softmax_says():
    errors = example.measure(seed=1)
    alphas = dict(zip(example.ALPHAS, range(len(example.ALPHAS)), strict=True))
    for name in ("3x3, replicate", "3x3, interior", "patches, zeros"):
        near, far = (errors[name][alphas[a]] for a in (16, 24))
        assert far / near == pytest.approx(torch.tensor(-8.0).exp().item(), rel=0.05), name
        assert errors[name][-1] < 1e-12, name
    assert min(errors["3x3, zeros"]) > 1
    assert len(example.table(errors)) == 5 + len(example.ALPHAS)


def test_heads_move_in_training():
    before, after, accuracy = example.train(seed=3, steps=4)
    assert before.centers.shape == after.centers.shape == (3, 9, 2)
    moved = (after.centers - before.centers).norm(dim=-1)
    assert moved.min() > 1e-4
    assert 0 <= accuracy <= 1
    again = example.train(seed=3, steps=4)[1]
    torch.testing.assert_close(again.centers, after.centers, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_script_writes_what_it_promises(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["example", "--out", str(tmp_path), "--steps", "4"])
    threads = torch.get_num_threads()
    example.main()
    torch.set_num_threads(threads)
    out = capsys.readouterr().out
    assert "replicate padding" in out
    assert "4 steps on digits" in out
    page = (tmp_path / "convolution.txt").read_text()
    assert page.splitlines()[7] in out
    assert "--steps 4" in page
    for picture in ("errors.png", "centers.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
