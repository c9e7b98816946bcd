"""Turning channels, in pairs or in blocks: the arithmetic of rotary position embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from posenc.functional.precision import at_least_float32
from posenc.memo import is_transformed


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, blocks: int = 1) -> Tensor:
    """Turns the first channels of `x`, pair by pair; the others pass.

    `(a, b) -> (a cos - b sin, b cos + a sin)`, computed in at least float32 and rounded once.

    Args:
        x: `[..., D]`.
        cos: `[..., R / 2]`, broadcast against the pairs of `x`; R is at most D.
        sin: the same shape.
        interleaved: channels 2c and 2c + 1 are a pair; otherwise c and c + R / 2.
        blocks: halves pair up within each of so many equal blocks of the R channels: in a block
            of W channels, c and c + W / 2.

    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> rotate(x, torch.zeros(2), torch.ones(2), interleaved=True)
    tensor([-2.,  1., -4.,  3.])
    >>> rotate(x, torch.zeros(2), torch.ones(2), interleaved=False)
    tensor([-3., -4.,  1.,  2.])
    """
    width = 2 * cos.shape[-1]
    dtype = at_least_float32(x.dtype, cos.dtype)
    first = x if width == x.shape[-1] else x[..., :width]
    first, cos, sin = first.to(dtype), cos.to(dtype), sin.to(dtype)
    turned = _turn_pairs(first, cos, sin) if interleaved else _turn_blocks(first, cos, sin, blocks)
    turned = turned.to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], dim=-1)


def rotate_blocks(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiplies the first channels of `x`, block by block, by matrices; the others pass.

    Computed in at least float32 and rounded once.

    Args:
        x: `[B, heads, N, D]`.
        matrices: `[1 or B, 1 or heads, N, blocks, W, W]`; `blocks * W` is at most D.

    >>> x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    >>> rotate_blocks(x, torch.tensor([[[[[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]]]]))
    tensor([[[[2., 3., 1., 4.]]]])
    """
    blocks, width = matrices.shape[-3], matrices.shape[-1]
    dtype = at_least_float32(x.dtype, matrices.dtype)
    first, rest = x[..., : blocks * width], x[..., blocks * width :]
    first = first.to(dtype).unflatten(-1, (blocks, width))
    # `einsum` makes one product of the images that share a matrix, where `matmul` would copy it.
    turned = torch.einsum("bhnkij,bhnkj->bhnki", matrices.to(dtype), first)
    turned = turned.flatten(-2).to(x.dtype)
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if not _is_viewable_as_complex(x):
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    # One multiplication that reads and writes each number once: measured fastest in eager mode.
    # Compilers have no complex numbers, and fuse the real form as well.
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)


def _is_viewable_as_complex(x: Tensor) -> bool:
    if is_transformed(x):
        return False
    even = all(stride % 2 == 0 for stride in x.stride()[:-1]) and x.storage_offset() % 2 == 0
    return bool(even) and x.stride(-1) == 1


def _turn_blocks(x: Tensor, cos: Tensor, sin: Tensor, blocks: int) -> Tensor:
    if blocks == 1:
        return _turn_halves(x, cos, sin)

    def widened(left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([t.unflatten(-1, (blocks, -1)) for t in (left, right)], -2).flatten(-3)

    # Halves of blocks are short runs of memory, on which arithmetic is slow: work on whole rows,
    # with a copy of them whose halves have changed places.
    halves = x.chunk(2 * blocks, dim=-1)
    swapped = torch.cat([halves[at ^ 1] for at in range(2 * blocks)], dim=-1)
    return torch.addcmul(x * widened(cos, cos), swapped, widened(-sin, sin))


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    if is_transformed(x) or (torch.is_grad_enabled() and _requires_grad(x, cos, sin)):
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    # Without a graph both halves can be written where they belong, without joining copies.
    shape = torch.broadcast_shapes(a.shape, cos.shape)
    out = x.new_empty(*shape[:-1], 2 * shape[-1])
    left, right = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=left).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=right).addcmul_(a, sin)
    return out


def _requires_grad(*tensors: Tensor) -> bool:
    return any(tensor.requires_grad for tensor in tensors)
