"""Turns by matrices: what `test_lower.py`, which compares them with their formula, does not ask."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from posenc import MatrixRotation, Rotation, TokenLayout, attend, create_encoding
from posenc.functional.rotary import rotate_blocks
from posenc.term_maps import map_tensors
from posenc.terms import CallShape

SHAPE = CallShape(batch=2, heads=3, tokens=6, head_dim=8, value_dim=8)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pairs", [1, 3, 4])
def test_blocks_of_two_are_interleaved_pairs(pairs):
    angles = random(1, 3, 6, pairs)
    cos, sin = angles.cos(), angles.sin()
    rows = [torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)]
    matrices = MatrixRotation(torch.stack(rows, -2))
    x = random(2, 3, 6, 8, seed=1)
    expected = Rotation(cos, sin, interleaved=True).apply(x)
    torch.testing.assert_close(matrices.apply(x), expected)


def test_the_identity_changes_nothing():
    q, k, v = (random(2, 3, 6, 8, seed=seed) for seed in range(3))
    term = MatrixRotation(torch.eye(4).double().expand(1, 1, 6, 2, 4, 4))
    torch.testing.assert_close(attend(q, k, v, term), attend(q, k, v), rtol=0, atol=1e-14)


def test_images_do_not_get_copies_of_a_matrix():
    """256 images, of which each would need 2 MiB: the largest tensor is that of the queries."""
    matrices, x = torch.eye(64).expand(1, 2, 64, 1, 64, 64), torch.ones(256, 2, 64, 64)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.untyped_storage().nbytes())
            return out

    with Sizes():
        rotate_blocks(x, matrices)
    assert max(sizes) == x.nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounded_once_to_the_dtype_of_the_queries(dtype):
    x, matrices = random(2, 3, 6, 8).to(dtype), random(1, 3, 6, 2, 4, 4, seed=1).float()
    exact = rotate_blocks(x.double(), matrices.double())
    turned = rotate_blocks(x, matrices)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned, exact.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_tensors_are_mapped():
    term = MatrixRotation(random(1, 3, 6, 2, 4, 4))
    names = []
    twice = map_tensors(term, lambda name, tensor: names.append(name) or 2 * tensor)
    assert names == ["matrices"] == list(term.tensors())
    assert torch.equal(twice.matrices, 2 * term.matrices)


def test_encodings_that_turn_act_in_the_order_of_the_terms():
    """By matrices and by pairs: the two orders differ."""
    layout = TokenLayout(2, 3)
    q, k, v = (random(2, 2, 6, 8, seed=seed) for seed in range(3))
    torch.manual_seed(0)
    liere = create_encoding("liere", layout=layout, num_heads=2, head_dim=8, strength=1.0)
    rope = create_encoding("rope_mixed", layout=layout, num_heads=2, head_dim=8)
    blocks, pairs = (encoding.double()(q, k, layout)[0] for encoding in (liere, rope))
    first_pairs = attend(q, k, v, (pairs, blocks))
    by_hand = attend(*(blocks.apply(pairs.apply(x)) for x in (q, k)), v)
    torch.testing.assert_close(first_pairs, by_hand)
    assert (first_pairs - attend(q, k, v, (blocks, pairs))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 6, 4, 4), r"MatrixRotation\.matrices must have shape .* got \[1, 1, 6, 4, 4\]"),
        ((4,), r"MatrixRotation\.matrices must have shape .* got \[4\]"),
        ((1, 1, 6, 2, 4, 3), r"\[1 or 2, 1 or 3, 6, 2, 3, 3\] .* got \[1, 1, 6, 2, 4, 3\]"),
        ((1, 1, 1, 2, 4, 4), r"MatrixRotation\.matrices must have shape .* got \[1, 1, 1, 2"),
        ((1, 2, 6, 2, 4, 4), r"MatrixRotation\.matrices must have shape .* got \[1, 2, 6, 2"),
        ((3, 1, 6, 2, 4, 4), r"MatrixRotation\.matrices must have shape .* got \[3, 1, 6, 2"),
        ((1, 1, 6, 3, 3, 3), r"turns 9 channels \(3 blocks of 3\), .* a head_dim of 8"),
        ((1, 1, 6, 0, 3, 3), r"turns 0 channels \(0 blocks of 3\), .* a head_dim of 8"),
    ],
)
def test_matrices_of_other_sizes(shape, message):
    term = MatrixRotation(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        term.check(SHAPE)
