import golden_cases
import oracles
import pytest
import torch

from posenc.functional.resample import resample_grid, resample_offsets

PAIRS = [
    ((2, 5), (7, 4)),
    ((7, 4), (2, 5)),
    ((3, 3), (5, 3)),
    ((4, 6), (4, 9)),
    ((5, 2), (3, 7)),
    ((7, 7), (12, 6)),
    ((5, 5), (2, 2)),
    ((2, 2), (5, 6)),
    ((4, 3), (1, 1)),
    ((4, 3), (1, 5)),
]


def random_table(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


TIMM = [name for name in golden_cases.names("abs_resample") if "transreid" not in name]


@pytest.mark.parametrize("name", TIMM)
def test_grid_equals_timm(name):
    golden = golden_cases.case(name)
    options, prefix = golden.hyperparameters, golden.hyperparameters["prefix_tokens"]
    table = golden.leaf("pos_embed")
    out = resample_grid(
        table[0, prefix:],
        tuple(options["old_h_w"]),
        tuple(options["new_h_w"]),
        mode=options["interpolation"],
        antialias=options["antialias"],
    )
    torch.testing.assert_close(out, golden["out"][0, prefix:], **golden.close)
    out.backward(golden["grad_out"][0, prefix:])
    expected = golden["grad_pos_embed"][0, prefix:]
    torch.testing.assert_close(table.grad[0, prefix:], expected, **golden.close)


@pytest.mark.parametrize("name", golden_cases.names("abs_resample_transreid"))
def test_grid_equals_transreid(name):
    golden = golden_cases.case(name)
    old, new = tuple(golden.hyperparameters["old"]), tuple(golden.hyperparameters["new_h_w"])
    table = golden["pos_embed"][0, 1:]
    out = resample_grid(table, old, new, mode="bilinear", antialias=False)
    torch.testing.assert_close(out, golden["out"][0, 1:], **golden.close)


def test_grid_is_unchanged_when_the_sizes_agree():
    table = random_table(10, 3)
    assert torch.equal(resample_grid(table, (2, 5), (2, 5)), table)


@pytest.mark.parametrize(("old", "new"), [((2, 8), (4, 4)), ((16, 8), (8, 16))])
def test_grid_of_equal_count_and_another_shape_is_resampled(old, new):
    """timm before 1.0.31 returned such a table as it was."""
    table = random_table(old[0] * old[1], 3)
    resampled = resample_grid(table, old, new)
    assert resampled.shape == table.shape
    assert (resampled - table).abs().max() > 0.1


@pytest.mark.parametrize("antialias", [True, False])
def test_grid_keeps_rows_and_columns_apart(antialias):
    table = torch.arange(3.0, dtype=torch.float64).repeat_interleave(5)[:, None]  # the row
    out = resample_grid(table, (3, 5), (6, 4), antialias=antialias).reshape(6, 4)
    torch.testing.assert_close(out, out[:, :1].expand(6, 4), atol=1e-6, rtol=0)
    assert (out.diff(dim=0) > 0).all()


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_offsets_equal_the_loop(old, new):
    table = random_table(2, (2 * old[0] - 1) * (2 * old[1] - 1)).requires_grad_()
    ours, expected = resample_offsets(table, old, new), oracles.resample_offsets(table, old, new)
    assert ours.shape == (2, (2 * new[0] - 1) * (2 * new[1] - 1))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    cotangent = random_table(*ours.shape)
    grads = [torch.autograd.grad(out, table, cotangent)[0] for out in (ours, expected)]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=0)


def test_offsets_are_unchanged_when_the_sizes_agree():
    table = random_table(3, 27)
    assert torch.equal(resample_offsets(table, (2, 5), (2, 5)), table)


def test_offsets_of_an_equal_side_are_not_mixed():
    table = random_table(2, 5, 7)
    out = resample_offsets(table.flatten(1), (3, 4), (6, 4)).reshape(2, 11, 7)
    torch.testing.assert_close(out[:, 5], table[:, 2])  # row offset 0
    torch.testing.assert_close(out[:, [0, -1]], table[:, [0, -1]])  # the farthest row offsets
    torch.testing.assert_close(out[:, [4, 6]], table[:, [1, 3]])  # the nearest ones


def test_offsets_of_a_side_of_one_are_constant():
    table = random_table(2, 7)
    out = resample_offsets(table, (1, 4), (3, 4)).reshape(2, 5, 7)
    torch.testing.assert_close(out, table[:, None].expand(2, 5, 7))


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_offsets_keep_constants_and_symmetry(old, new):
    rows, columns = 2 * old[0] - 1, 2 * old[1] - 1
    ones = torch.ones(1, rows * columns, dtype=torch.float64)
    torch.testing.assert_close(
        resample_offsets(ones, old, new),
        torch.ones(1, (2 * new[0] - 1) * (2 * new[1] - 1), dtype=torch.float64),
    )
    table = random_table(1, rows * columns)
    turned = resample_offsets(table.flip(1), old, new)  # every offset changes its sign
    torch.testing.assert_close(turned, resample_offsets(table, old, new).flip(1))


def test_offsets_have_a_gradient_in_every_entry():
    table = random_table(1, 15).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: resample_offsets(t, (2, 3), (4, 5)), (table,))
    (grad,) = torch.autograd.grad(resample_offsets(table, (2, 3), (4, 5)).sum(), table)
    assert (grad > 0).all()
