import gc
import threading

import oracles
import pytest
import tiny_vit
import torch

import posenc
from posenc import memo
from posenc.functional.buckets import irpe_index, swin_index
from posenc.functional.coordinates import patch_coordinates, unit_coordinates
from posenc.functional.resample import resample_offsets
from posenc.functional.sincos import sincos_table
from posenc.layout import TokenLayout
from posenc.memo import Memo, memoized

LAYOUT = TokenLayout(3, 4, 1)


@pytest.fixture(autouse=True)
def empty():
    """Each test starts and ends with nothing remembered."""
    memo.clear_cache()
    yield
    memo.clear_cache()


@memoized
def ones(count):
    return torch.ones(count)


# Built in inference mode, used in training

BUILDERS = {
    "irpe_index": lambda: irpe_index(LAYOUT, "product", 1.9, "shared").dense(),
    "transposed": lambda: irpe_index(LAYOUT, "product", 1.9, "shared").T.dense(),
    "swin_index": lambda: swin_index(LAYOUT, "separate").dense(),
    "sincos_table": lambda: sincos_table(LAYOUT, 8, "mae"),
    "patch_coordinates": lambda: patch_coordinates(LAYOUT, torch.device("cpu"), torch.float32),
    "unit_coordinates": lambda: unit_coordinates(LAYOUT, torch.device("cpu"), torch.float32),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_built_in_inference_mode_usable_in_training(name):
    with torch.inference_mode():
        first = BUILDERS[name]()
    second = BUILDERS[name]()
    assert second is first
    assert not second.is_inference()
    assert not second.requires_grad
    weight = torch.ones((), requires_grad=True)
    (weight * second).sum().backward()
    assert weight.grad == second.sum()


def test_resampling_built_in_inference_mode_trains():
    table = torch.ones(2, 15, requires_grad=True)
    with torch.inference_mode():
        resample_offsets(table, (2, 3), (4, 3))
    resample_offsets(table, (2, 3), (4, 3)).sum().backward()
    assert table.grad.sum() == pytest.approx(2 * 7 * 5)


NAMES = ["irpe", "swin", "human_part", "sinusoidal", "learned", "peg", "quadratic"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"resized": True}])
def test_a_model_first_run_in_inference_mode_trains(name, options):
    strength = {"strength": 0.0} if name in ("quadratic", "sinusoidal") else {}
    gradients = []
    for first in (True, False):
        model = posenc.patch_model(tiny_vit.vit(), name, **strength)
        for encoding in posenc.patched_encodings(model).values():
            oracles.randomize(encoding)
        if options:
            model.set_input_size(img_size=(20, 12))
        x = tiny_vit.images(model)
        if first:
            with torch.inference_mode():
                once, twice = model(x), model(x)
            torch.testing.assert_close(once, twice, rtol=1e-13, atol=1e-13)
        model(x).square().sum().backward()  # still in eval
        gradients.append([p.grad for _, p in posenc.encoding_parameters(model)])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


ENCODINGS = {
    "swin": lambda: posenc.SwinBias(LAYOUT, 2),
    "irpe bias": lambda: posenc.IRPE(LAYOUT, 2, 4, mode="bias"),
    "irpe": lambda: posenc.IRPE(LAYOUT, 2, 4, on="qk"),
    "human_part": lambda: posenc.HumanPart(LAYOUT, 2, strength=1.0),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_an_encoding_alone_in_inference_mode_first(name):
    encoding = oracles.randomize(ENCODINGS[name]()).eval()
    q = torch.ones(1, 2, 13, 4)
    with torch.inference_mode():
        posenc.attend(q, q, q, encoding(q, q, LAYOUT))
    q.requires_grad_()
    with torch.no_grad():
        remembered = encoding(q, q, LAYOUT)
    for term in remembered:
        assert not any(x.is_inference() for x in vars(term).values() if torch.is_tensor(x))
        assert not term.dense().is_inference()
    for backend in ("sdpa", "reference"):
        posenc.attend(q, q, q, remembered, backend=backend).square().sum().backward()
    posenc.attend(q, q, q, encoding(q, q, LAYOUT)).square().sum().backward()
    assert all(p.grad is not None for p in encoding.parameters())
    assert q.grad.isfinite().all()


# What is remembered


def test_remembers_by_all_arguments():
    assert ones(3) is ones(3)
    assert ones(3) is not ones(4)
    assert swin_index(LAYOUT, "none") is swin_index(TokenLayout(3, 4, 1), "none")
    assert swin_index(LAYOUT, "none") is not swin_index(TokenLayout(4, 3, 1), "none")
    assert sincos_table(LAYOUT, 8, "mae") is not sincos_table(LAYOUT, 8, "mae", 100.0)
    single = sincos_table(LAYOUT, 8, "mae")
    assert sincos_table(LAYOUT, 8, "mae", dtype=torch.float64).dtype == torch.float64
    assert sincos_table(LAYOUT, 8, "mae") is single


def test_clear_forgets():
    first = ones(3)
    memo.clear_cache()
    assert ones(3) is not first


def test_built_without_gradient_history():
    @memoized
    def square(x):
        return x * x

    weight = torch.ones((), requires_grad=True)
    assert not square(weight).requires_grad


def test_nothing_is_remembered_on_meta():
    table = sincos_table(LAYOUT, 8, "mae", device="meta")
    assert table.is_meta
    assert sincos_table(LAYOUT, 8, "mae", device="meta") is not table


def test_nothing_is_remembered_of_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        sincos_table(LAYOUT, 8, "mae")
        swin_index(LAYOUT, "none").dense()
    assert type(sincos_table(LAYOUT, 8, "mae")) is torch.Tensor
    assert type(swin_index(LAYOUT, "none").dense()) is torch.Tensor


def test_a_default_device_context_changes_nothing():
    with torch.device("meta"):
        assert sincos_table(LAYOUT, 8, "mae").device.type == "cpu"
        assert swin_index(LAYOUT, "none").dense().device.type == "cpu"


# Budgets


def test_the_least_recently_used_go_first(monkeypatch):
    monkeypatch.setattr(memo, "LIMIT_BYTES", 4 * 25)
    kept, dropped = ones(10), ones(11)
    assert ones(10) is kept  # used again: now the newer one
    ones(12)
    assert sum(memo._sizes.values()) <= memo.LIMIT_BYTES
    assert ones(10) is kept
    assert ones(11) is not dropped


def test_a_result_larger_than_the_budget_is_still_returned(monkeypatch):
    monkeypatch.setattr(memo, "LIMIT_BYTES", 4)
    assert ones(10).shape == (10,)
    assert ones(11).shape == (11,)
    assert len(memo._entries) == 1


def test_memos_share_one_budget(monkeypatch):
    gc.collect()
    start = Memo.held_bytes
    monkeypatch.setattr(Memo, "LIMIT_BYTES", start + 100)
    one, two = Memo(), Memo()
    one.keep("a", torch.zeros(15))
    two.keep("a", torch.zeros(15))
    assert Memo.held_bytes == start + 60
    assert one.get("a") is not None
    assert two.get("a") is None
    two.keep("b", torch.zeros(10))
    assert Memo.held_bytes == start + 100


def test_a_memo_releases_its_bytes():
    gc.collect()
    start = Memo.held_bytes
    held = Memo()
    held.keep("a", torch.zeros(15))
    held.keep("b", torch.zeros(5, dtype=torch.float64))
    assert Memo.held_bytes == start + 100
    del held
    assert Memo.held_bytes == start


def test_the_budget_holds_for_a_model(monkeypatch):
    """Room for the bias of one of two blocks: the outputs are the same."""
    model = posenc.patch_model(tiny_vit.vit(), "swin")
    for encoding in posenc.patched_encodings(model).values():
        oracles.randomize(encoding)
    x = tiny_vit.images(model)
    expected = model(x)
    gc.collect()
    start = Memo.held_bytes
    monkeypatch.setattr(Memo, "LIMIT_BYTES", start + 2 * 16 * 16 * 8 + 8)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(model(x), expected, rtol=1e-13, atol=1e-13)
    assert start < Memo.held_bytes <= Memo.LIMIT_BYTES
    model.train()
    assert Memo.held_bytes == start


# Threads


def in_threads(work, count=8):
    results, errors = [], []
    barrier = threading.Barrier(count)

    def run(number):
        barrier.wait()
        try:
            results.append(work(number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return results


def test_many_threads_build_the_same(monkeypatch):
    monkeypatch.setattr(memo, "LIMIT_BYTES", 4 * 40)  # so that entries come and go

    def work(number):
        return [ones(1 + (step + number) % 12).sum().item() for step in range(300)]

    for number, sums in enumerate(map(sorted, in_threads(work))):
        assert sums == sorted(float(1 + (step + number) % 12) for step in range(300))
    assert sum(memo._sizes.values()) <= memo.LIMIT_BYTES
    assert memo._sizes.keys() == memo._entries.keys()


def test_one_model_in_many_threads():
    model = posenc.patch_model(tiny_vit.vit(), "irpe+swin+human_part")
    for encoding in posenc.patched_encodings(model).values():
        oracles.randomize(encoding)
    inputs = [tiny_vit.images(model, seed=seed) for seed in range(4)]
    expected = [model(x).detach() for x in inputs]
    memo.clear_cache()

    def work(number):
        with torch.no_grad():
            return number, [model(inputs[number % 4]) for _ in range(5)]

    for number, outputs in in_threads(work, 4):
        for output in outputs:
            torch.testing.assert_close(output, expected[number], rtol=1e-12, atol=1e-12)
