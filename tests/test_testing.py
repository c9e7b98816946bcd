"""The checks of encodings notice broken promises: each of these encodings breaks one."""

import pytest
import torch
from torch import nn

from posenc import AttentionEncoding, SwinBias, TokenEncoding
from posenc.functional.buckets import swin_index
from posenc.terms import DenseBias, LookupBias, LowRankBias
from posenc.testing import check_backend, check_encoding, checks_of


class Good(AttentionEncoding):
    """A learned number for every pair, of the same tokens always; nothing for other layouts."""

    is_static = True

    def __init__(self, layout, num_heads, head_dim=None, *, device=None, dtype=None):
        super().__init__(layout, num_heads, head_dim)
        self.slope = nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype))

    def changes_at_start(self):
        return False

    def matrix(self, q, layout):
        place = torch.arange(layout.num_tokens, device=q.device)
        distance = (place[:, None] - place).abs().to(torch.promote_types(q.dtype, torch.float32))
        return self.slope.to(distance.dtype)[None, :, None, None] * distance

    def terms(self, q, k, layout, scale):
        return (DenseBias(self.matrix(q, layout)),)


class Effect(Good):
    def changes_at_start(self):
        return True


class NoEffect(Good):
    def terms(self, q, k, layout, scale):
        return (DenseBias(self.matrix(q, layout) + torch.eye(layout.num_tokens, dtype=q.dtype)),)


class OneGrid(Good):
    def terms(self, q, k, layout, scale):
        return (DenseBias(self.matrix(q, self.layout)),)


class Unused(Good):
    def __init__(self, layout, num_heads, head_dim=None, *, device=None, dtype=None):
        super().__init__(layout, num_heads, head_dim, device=device, dtype=dtype)
        self.unused = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))


class Stale(Good):
    """Says that it reads no queries, and does."""

    def terms(self, q, k, layout, scale):
        return (DenseBias(self.matrix(q, layout) * q.mean()),)


class MixesImages(Good):
    is_static = False

    def terms(self, q, k, layout, scale):
        return (DenseBias(self.matrix(q, layout) * q.mean()),)


class Random(Good):
    is_static = False

    def terms(self, q, k, layout, scale):
        return (DenseBias(self.matrix(q, layout) + 0 * torch.rand(1, dtype=q.dtype)),)


class Unpicklable(Good):
    def __init__(self, layout, num_heads, head_dim=None, *, device=None, dtype=None):
        super().__init__(layout, num_heads, head_dim, device=device, dtype=dtype)
        self.function = lambda: None


class Coarse(Good):
    def terms(self, q, k, layout, scale):
        return (DenseBias(self.matrix(q, layout).bfloat16()),)


class Inconsistent(Good):
    """Factors and a table that give different biases."""

    def terms(self, q, k, layout, scale):
        index = swin_index(layout, "none")
        dtype = torch.promote_types(q.dtype, torch.float32)
        slope = self.slope.to(dtype)[None, :, None, None]
        table = slope * torch.arange(index.num_buckets, dtype=dtype)
        left = slope * torch.arange(layout.num_tokens, dtype=dtype)[:, None]
        exact = LookupBias(table, index)
        return (LowRankBias(left, torch.ones_like(left), exact=exact),)


class OffsetsOfAnyGrid(SwinBias):
    """Reads the table of 4x3 patches as one of 3x4."""

    is_sized_by_grid = False


BROKEN = {
    OffsetsOfAnyGrid: "Loads a state of another grid only where it means the same",
    Effect: "nothing changes",
    NoEffect: "States its effect at start",
    OneGrid: "Accepts other grids",
    Unused: r"no gradient reaches \['unused'\]",
    Stale: "Treats each image|Follows its parameters|Equals the reference",
    MixesImages: "Treats each image",
    Random: "random numbers were drawn",
    Unpicklable: "Survives pickle",
    Coarse: "is torch.bfloat16|Keeps the dtype",
    Inconsistent: "Equals the reference",
}


def test_a_good_encoding_passes():
    check_encoding(Good)


@pytest.mark.parametrize("encoding", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_promise_is_named(encoding):
    with pytest.raises(AssertionError, match=BROKEN[encoding]):
        check_encoding(encoding)


class GoodTokens(TokenEncoding):
    def __init__(self, layout, embed_dim, *, device=None, dtype=None):
        super().__init__(layout, embed_dim)
        self.vector = nn.Parameter(torch.zeros(embed_dim, device=device, dtype=dtype))

    def changes_at_start(self):
        return False

    def encode(self, x, layout):
        rows = torch.arange(layout.num_tokens, device=x.device)
        return x + (rows[:, None] * self.vector).to(x.dtype)


class TokensOfAnotherDtype(GoodTokens):
    def encode(self, x, layout):
        return super().encode(x, layout).float()


class TokensMixed(GoodTokens):
    def encode(self, x, layout):
        return x + self.vector.to(x.dtype) * x.mean()


def test_good_tokens_pass():
    check_encoding(GoodTokens)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        (TokensOfAnotherDtype, "States its effect|bfloat16 became"),
        (TokensMixed, "Treats each image"),
    ],
)
def test_broken_tokens_are_named(encoding, name):
    with pytest.raises(AssertionError, match=name):
        check_encoding(encoding)


def test_a_backend_is_compared_on_every_layout_that_it_computes():
    assert check_backend(Good, "tiled") == 5
    assert check_backend(Good, "lowrank") == 0


def test_options_reach_the_encoding():
    names = [name for name, _ in checks_of("irpe", mode="bias")]
    assert "Equals the reference on every backend, forward and all gradients" in names
    with pytest.raises(ValueError, match="irpe has no option 'nothing'"):
        check_encoding("irpe", nothing=1)
