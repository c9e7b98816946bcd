"""A caller's float mask in another dtype than the query."""

import pytest
import torch
import torch.nn.functional as F

import posenc
from posenc.terms import DenseBias, LowRankBias

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BACKENDS = ["reference", "sdpa", "lowrank", "tiled"]
each_pair = pytest.mark.parametrize(
    ("dtype", "mask_dtype"), [(a, b) for a in FLOATS for b in FLOATS if a != b]
)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-6, torch.float64: 1e-12}


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def inputs(dtype, tokens=7):
    return [random(2, 3, tokens, 8, seed=seed, dtype=dtype) for seed in range(3)]


def no_terms(dtype):
    return ()


def thin_terms(dtype):
    left, right = (random(1, 3, 7, 2, seed=seed).to(dtype) for seed in (4, 5))
    return (LowRankBias(left, right),)


TERMS = {"reference": no_terms, "sdpa": no_terms, "lowrank": thin_terms, "tiled": thin_terms}


def results(backend, q, k, v, terms, mask):
    """Output and gradients, of the mask too; `exact` in float64 by the definition."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v, mask)]
    out = posenc.attend(*leaves[:3], terms, attn_mask=leaves[3], backend=backend)
    return [out, *torch.autograd.grad(out.double().square().sum(), leaves)]


@each_pair
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_takes_it(backend, dtype, mask_dtype):
    q, k, v = inputs(dtype)
    terms, mask = TERMS[backend](dtype), random(7, 7, seed=9, dtype=mask_dtype) * 3
    ours = results(backend, q, k, v, terms, mask)
    exact = [LowRankBias(t.left.double(), t.right.double()) for t in terms]
    want = results("reference", q.double(), k.double(), v.double(), exact, mask.double())
    assert [x.dtype for x in ours] == [dtype] * 4 + [mask_dtype]
    tolerance = max(TOLERANCE[dtype], TOLERANCE[mask_dtype])
    for x, y in zip(ours, want, strict=True):
        assert (x.double() - y).norm() <= tolerance * y.norm()


@pytest.mark.parametrize("backend", ["sdpa", "lowrank"])
def test_pytorch_receives_the_dtype_of_the_query(backend, monkeypatch):
    """Whatever the dtype of the mask: cuDNN reads another one wrongly."""
    seen = []
    sdpa = F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, **options):
        seen.append((query.dtype, attn_mask.dtype))
        return sdpa(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    for dtype in FLOATS:
        for mask_dtype in [*FLOATS, torch.bool]:
            mask = torch.ones(7, 7, dtype=mask_dtype)
            terms = TERMS[backend](dtype)
            posenc.attend(*inputs(dtype), terms, attn_mask=mask, backend=backend)
            assert seen.pop() in [(dtype, dtype), (dtype, torch.bool)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_numbers_keep_their_differences(dtype):
    """A mask far from zero, whose 16-bit neighbors are 8 and 64 apart."""
    q, k, v = inputs(dtype)
    mask = 9000 + random(7, 7, seed=9, dtype=torch.float32)
    ours = posenc.attend(q, k, v, attn_mask=mask, backend="sdpa")
    want = posenc.attend(q.double(), k.double(), v.double(), attn_mask=mask, backend="reference")
    assert (ours.double() - want).norm() <= TOLERANCE[dtype] * want.norm()


@pytest.mark.parametrize("backend", ["sdpa", "lowrank"])
@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float32).min])
def test_rows_of_the_smallest_number(backend, lowest):
    """Minus infinity masks a whole row; a number that all keys of a row have masks none."""
    q, k, v = inputs(torch.float16)
    mask = torch.zeros(7, 7)
    mask[2], mask[:, 4] = lowest, lowest
    terms = TERMS[backend](torch.float16)
    ours = posenc.attend(q, k, v, terms, attn_mask=mask, backend=backend)
    mask[2] = lowest if lowest == float("-inf") else 0.0
    want = posenc.attend(q, k, v, terms, attn_mask=mask, backend="reference")
    assert want[:, :, 2].any() == (lowest != float("-inf"))
    torch.testing.assert_close(ours, want, rtol=0, atol=6e-3)


@pytest.mark.parametrize("shape", [(7, 7), (1, 7), (3, 7, 7), (2, 1, 1, 7), (2, 3, 7, 1)])
def test_every_shape_of_mask(shape):
    q, k, v = inputs(torch.bfloat16)
    mask = random(*shape, seed=9, dtype=torch.float32)
    ours = posenc.attend(q, k, v, attn_mask=mask, backend="sdpa")
    want = posenc.attend(q.double(), k.double(), v.double(), attn_mask=mask, backend="reference")
    assert (ours.double() - want).norm() <= TOLERANCE[torch.bfloat16] * want.norm()


def test_beside_a_bias_as_before():
    q, k, v = inputs(torch.float32)
    bias, mask = random(1, 3, 7, 7, seed=6, dtype=torch.float32), random(7, 7, seed=9)
    ours = posenc.attend(q, k, v, DenseBias(bias), attn_mask=mask, backend="sdpa")
    want = posenc.attend(q, k, v, DenseBias(bias), attn_mask=mask, backend="reference")
    torch.testing.assert_close(ours, want, rtol=0, atol=2e-6)


def test_integer_masks_are_still_refused():
    with pytest.raises(TypeError, match=r"attn_mask must be boolean .* or floating point"):
        posenc.attend(*inputs(torch.float32), attn_mask=torch.ones(7, 7, dtype=torch.long))


def test_in_one_compiled_graph():
    torch.compiler.reset()
    q, k, v = inputs(torch.bfloat16)
    mask = random(7, 7, seed=9, dtype=torch.float32)

    def attend(q, k, v, mask):
        return posenc.attend(q, k, v, attn_mask=mask, backend="sdpa")

    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v, mask), attend(q, k, v, mask))
    torch.compiler.reset()
