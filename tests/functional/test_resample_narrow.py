"""An absolute table on grids of any shape, those one patch wide or high among them."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch.func import vmap

from posenc import LearnedAbsolute, TokenLayout
from posenc.functional.resample import resample_grid

GRIDS = [
    ((5, 1), (7, 1)),  # one wide
    ((5, 1), (3, 1)),
    ((5, 1), (2, 4)),
    ((5, 3), (7, 1)),
    ((5, 3), (2, 1)),
    ((1, 5), (1, 8)),  # one high
    ((1, 5), (3, 2)),
    ((3, 5), (1, 7)),
    ((1, 1), (4, 1)),
    ((1, 1), (3, 2)),
    ((4, 3), (1, 1)),
    ((16, 8), (8, 16)),  # ordinary
    ((3, 5), (7, 4)),
    ((7, 4), (3, 5)),
    ((3, 5), (3, 9)),
    ((6, 2), (11, 2)),
]
each_grid = pytest.mark.parametrize(("old", "new"), GRIDS)


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def output_and_gradient(resample, table, cotangent):
    table = table.clone().requires_grad_()
    out = resample(table)
    out.backward(cotangent)
    return out.detach(), table.grad


def interpolated(table, old, new, **options):
    """PyTorch's own, in the layout in which it is right."""
    image = table.reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = image.contiguous(memory_format=torch.channels_last)
    image = F.interpolate(image, size=new, align_corners=False, **options)
    return image.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1)


@each_grid
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("antialias", [True, False])
def test_equals_interpolate_in_channels_last(old, new, mode, antialias):
    table, cotangent = random(old[0] * old[1], 6), random(new[0] * new[1], 6)
    options = {"mode": mode, "antialias": antialias}
    ours = output_and_gradient(lambda t: resample_grid(t, old, new, **options), table, cotangent)
    want = output_and_gradient(lambda t: interpolated(t, old, new, **options), table, cotangent)
    torch.testing.assert_close(ours, want, rtol=0, atol=1e-12)


@each_grid
@pytest.mark.parametrize("antialias", [True, False])
def test_equals_timm(old, new, antialias):
    table = random(old[0] * old[1], 6, dtype=torch.float32)
    cotangent = random(new[0] * new[1], 6, dtype=torch.float32)

    def timms(t):
        return resample_abs_pos_embed(
            t[None], list(new), list(old), num_prefix_tokens=0, antialias=antialias
        )[0]

    ours = output_and_gradient(
        lambda t: resample_grid(t, old, new, antialias=antialias), table, cotangent
    )
    want = output_and_gradient(timms, table, cotangent)
    # timm's weights are computed in float32, these in float64.
    torch.testing.assert_close(ours, want, rtol=2e-6, atol=4e-6)


@each_grid
def test_right_in_every_layout_of_memory(old, new):
    """Channels first in memory, every second channel, and both."""
    table = random(old[0] * old[1], 6)
    expected = resample_grid(table, old, new)
    strided = random(old[0] * old[1], 12)[:, ::2].copy_(table)
    for same in (table.T.contiguous().T, strided, strided.T.contiguous().T):
        torch.testing.assert_close(resample_grid(same, old, new), expected, rtol=0, atol=1e-12)


def test_the_learned_table_of_one_column_of_patches():
    """A table that grows downwards grows on the taller grid, too."""
    learned = LearnedAbsolute(TokenLayout(4, 1, prefix=1), embed_dim=3)
    with torch.no_grad():
        learned.table[1:] = torch.arange(4.0)[:, None]
    rows = learned.resampled(TokenLayout(8, 1, prefix=1))[1:]
    assert (rows.diff(dim=0) > 0).all()


def test_gradcheck_on_a_grid_one_wide():
    table = random(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: resample_grid(t, (5, 1), (3, 1)), (table,))


def test_autocast_does_not_round():
    table = random(15, 4, dtype=torch.float32)
    expected = resample_grid(table, (3, 5), (4, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample_grid(table, (3, 5), (4, 2)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tables_are_resampled_in_float32(dtype):
    table = random(15, 4).to(dtype)
    expected = resample_grid(table.float(), (3, 5), (4, 2)).to(dtype)
    assert torch.equal(resample_grid(table, (3, 5), (4, 2)), expected)


def test_many_tables_by_vmap():
    tables = random(3, 15, 4)
    out = vmap(lambda t: resample_grid(t, (3, 5), (4, 1)))(tables)
    expected = torch.stack([resample_grid(t, (3, 5), (4, 1)) for t in tables])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_an_unknown_mode_is_refused():
    with pytest.raises(NotImplementedError, match="nearest-ish"):
        resample_grid(random(15, 4), (3, 5), (4, 2), mode="nearest-ish", antialias=False)
