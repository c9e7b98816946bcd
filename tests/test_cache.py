"""Static biases that are remembered in eval follow every change."""

import oracles
import pytest
import tiny_vit
import torch
from cached_encodings import ENCODINGS, LAYOUT, build, fresh, output, qkv

import posenc
from posenc import IRPE, TokenLayout, attend
from posenc.terms import LookupBias, LowRankBias


def copy_data(encoding, parameter):
    parameter.data.copy_(parameter.data.flip(-1) * 1.5)


def scale_data(encoding, parameter):
    parameter.data.mul_(1.5)


def one_entry(encoding, parameter):
    parameter.data.view(-1)[-1] += 0.7


def in_place(encoding, parameter):
    with torch.no_grad():
        parameter.mul_(-1.5)


def new_data(encoding, parameter):
    parameter.data = parameter.data * 1.5


def optimizer_step(encoding, parameter):
    optimizer = torch.optim.AdamW(encoding.parameters(), lr=0.3)
    q, k, v = qkv()
    attend(q, k, v, encoding(q, k, LAYOUT)).square().sum().backward()
    optimizer.step()


def fused_step(encoding, parameter):
    optimizer = torch.optim.SGD(encoding.parameters(), lr=0.3, foreach=True)
    for p in encoding.parameters():
        p.grad = p.detach().clone()
    optimizer.step()


def load(encoding, parameter):
    state = {key: value * 1.5 for key, value in encoding.state_dict().items()}
    encoding.load_state_dict(state)


def assign(encoding, parameter):
    state = {key: value * 1.5 for key, value in encoding.state_dict().items()}
    encoding.load_state_dict(state, assign=True)


def swap_parameter(encoding, parameter):
    name = next(iter(dict(encoding.named_parameters())))
    setattr(encoding, name, torch.nn.Parameter(parameter.detach() * 1.5))


def train_and_back(encoding, parameter):
    encoding.train()
    parameter.data.mul_(1.5)
    encoding.eval()


def storage(encoding, parameter):
    parameter.detach().numpy()[...] *= 1.5


CHANGES = [
    copy_data,
    scale_data,
    one_entry,
    in_place,
    new_data,
    optimizer_step,
    fused_step,
    load,
    assign,
    swap_parameter,
    train_and_back,
    storage,
]


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("inference", [False, True])
def test_a_changed_parameter_is_seen(name, change, inference):
    encoding = build(name)
    with torch.inference_mode(inference):
        before = output(encoding)
        assert torch.equal(output(encoding), before)
    change(encoding, next(encoding.parameters()))
    after = output(encoding)
    assert not torch.allclose(after, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, fresh(encoding))


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_parameter_is_watched(name):
    encoding = build(name)
    for _, parameter in encoding.named_parameters():
        before = output(encoding)
        parameter.data.mul_(1.5)
        assert not torch.allclose(output(encoding), before, rtol=1e-5)
        assert torch.equal(output(encoding), fresh(encoding))


@pytest.mark.parametrize("name", ENCODINGS)
def test_another_dtype_and_back(name):
    encoding = build(name)
    first = output(encoding)
    encoding.double()
    double = output(encoding, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(double, fresh(encoding, dtype=torch.float64))
    encoding.bfloat16()
    rounded = output(encoding)
    assert torch.equal(rounded, fresh(encoding))
    assert not torch.equal(rounded, first)


@pytest.mark.parametrize("name", ENCODINGS)
def test_queries_in_another_dtype(name):
    """float64 queries get float64 precision, also after float32 ones."""
    encoding = build(name)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        out = output(encoding, dtype=dtype)
        assert out.dtype == dtype
        assert torch.equal(out, fresh(encoding, dtype=dtype))


@pytest.mark.parametrize("name", ["swin", "irpe", "quadratic", "human_part"])
def test_another_layout_of_equal_count(name):
    encoding = build(name)
    turned = TokenLayout(4, 3, 1)
    for layout in (LAYOUT, turned, LAYOUT, turned):
        out = output(encoding, layout)
        assert torch.equal(out, fresh(encoding, layout))
    assert not torch.allclose(output(encoding, turned), output(encoding))


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_eval_equals_training_mode(name, backend):
    encoding = build(name)
    for _ in range(2):
        out = output(encoding, backend=backend)
        assert torch.equal(out, fresh(encoding, backend=backend))
        expected = fresh(encoding, backend=backend, grad=True)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ENCODINGS)
def test_masks_are_not_remembered(name):
    encoding = build(name)
    q, k, v = qkv()
    with torch.no_grad():
        terms = encoding(q, k, LAYOUT)
        plain = attend(q, k, v, terms)
        mask = torch.rand(13, 13, generator=torch.Generator().manual_seed(1)) > 0.3
        masked = [attend(q, k, v, terms, attn_mask=m) for m in (mask, ~mask, mask)]
        assert torch.equal(attend(q, k, v, terms), plain)
    assert torch.equal(masked[0], masked[2])
    assert not torch.allclose(masked[0], masked[1])
    assert not torch.allclose(masked[0], plain)


@pytest.fixture
def dense_calls(monkeypatch):
    calls = []
    for kind in (LookupBias, LowRankBias):
        original = kind.dense

        def dense(self, original=original):
            calls.append(self)
            return original(self)

        monkeypatch.setattr(kind, "dense", dense)
    return calls


@pytest.mark.parametrize("name", ["swin", "quadratic", "human_part"])
def test_the_dense_bias_is_built_once(name, dense_calls):
    encoding = build(name)
    first = output(encoding)
    assert len(dense_calls) == 1
    assert torch.equal(output(encoding), first)
    assert len(dense_calls) == 1
    next(encoding.parameters()).data.add_(0.5)
    output(encoding)
    output(encoding)
    assert len(dense_calls) == 2


def test_a_model_builds_one_bias_per_block(dense_calls):
    model = posenc.patch_model(tiny_vit.vit(depth=3), "swin")
    x = tiny_vit.images(model)
    with torch.no_grad():
        for _ in range(3):
            model(x)
    assert len(dense_calls) == 3
    model(x)  # with gradient: rebuilt, so that the table gets one
    assert len(dense_calls) == 6
    with torch.no_grad():
        model(x)
        assert len(dense_calls) == 6
        model.train()(x)
        assert len(dense_calls) == 9
        model.eval()(x)
    assert len(dense_calls) == 12


def test_a_shared_bias_is_built_once(dense_calls):
    model = posenc.patch_model(tiny_vit.vit(depth=3), "swin", share=True)
    x = tiny_vit.images(model)
    with torch.no_grad():
        model(x)
        model(x)
    assert len(dense_calls) == 1


def test_nothing_is_remembered_with_gradients(dense_calls):
    encoding = build("swin")
    q, k, v = qkv()
    for count in (1, 2):
        attend(q, k, v, encoding(q, k, LAYOUT)).sum().backward()
        assert len(dense_calls) == count
    assert encoding.table.grad.any()


def test_contextual_terms_are_not_remembered():
    irpe = oracles.randomize(IRPE(LAYOUT, 2, 4)).eval()
    q, k, _ = qkv()
    with torch.no_grad():
        one, two = irpe(q, k, LAYOUT)[0], irpe(2 * q, k, LAYOUT)[0]
    torch.testing.assert_close(two.lookup, 2 * one.lookup)
