"""Attention inside torch.compile when every number is a symbol."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import posenc
from posenc.terms import LowRankBias

pytestmark = pytest.mark.slow


def two_blocks(q, k, v, left, right):
    """Each is replayed in backward: Dynamo traces them as two graphs inside one."""

    def block(q, k, v):
        # Without the number Dynamo makes a symbol of the default, and fails in the same way.
        options = {"dropout_p": 0.0, "backend": "lowrank"}
        return q + posenc.attend(q, k, v, LowRankBias(left, right), **options)

    q = checkpoint(block, q, k, v, use_reentrant=False)
    return checkpoint(block, q, k, v, use_reentrant=False)


def arguments(head_dim):
    generator = torch.Generator().manual_seed(head_dim)
    shapes = [(2, 2, 7, head_dim)] * 3 + [(1, 2, 7, 3)] * 2
    tensors = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.filterwarnings("ignore")  # torch's own code warns while it traces
def test_checkpointed_low_rank_blocks():
    torch.compiler.reset()
    compiled = torch.compile(two_blocks, fullgraph=True, backend="aot_eager", dynamic=True)
    for head_dim in (8, 12):
        inputs = arguments(head_dim)
        outs = [f(*inputs) for f in (compiled, two_blocks)]
        torch.testing.assert_close(*outs, rtol=0, atol=1e-12)
        grads = [torch.autograd.grad(out.square().sum(), inputs) for out in outs]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-11)
    torch.compiler.reset()


def test_a_scale_that_is_too_small_is_still_rejected():
    inputs = arguments(8)
    with pytest.raises(ValueError, match=r"divided by scale=1e-07, which is too small"):
        posenc.attend(*inputs[:3], LowRankBias(*inputs[3:]), backend="lowrank", scale=1e-7)
