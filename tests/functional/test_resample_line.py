"""A table along one line equals `interpolate` with mode="linear", and its gradient too."""

import pytest
import torch
import torch.nn.functional as F

from posenc.functional.resample import resample_line


@pytest.mark.parametrize(("old", "new"), [(13, 7), (7, 13), (9, 11), (1, 5), (5, 1), (3, 3)])
def test_equals_interpolate(old, new):
    table = torch.randn(old, 4, generator=torch.Generator().manual_seed(0)).double()
    table.requires_grad_()
    expected = F.interpolate(table.T[None], size=new, mode="linear", align_corners=False)[0].T
    out = resample_line(table, new)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    cotangent = torch.randn(new, 4, generator=torch.Generator().manual_seed(1)).double()
    grads = [
        torch.autograd.grad(x, table, cotangent, retain_graph=True)[0] for x in (out, expected)
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_an_equal_length_is_the_table_itself():
    table = torch.randn(5, 2)
    assert resample_line(table, 5) is table
