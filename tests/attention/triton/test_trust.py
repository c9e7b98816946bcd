"""What `auto` has to see of the kernels before it takes them."""

import dataclasses
import json
import re
import warnings

import pytest
import torch
from kernel_calls import DEVICE, call_of, qkv, random_terms, set_tiles

from posenc import TokenLayout
from posenc.attention import picker, trial, trust
from posenc.attention.kernels import forms, launch, run
from posenc.terms import LookupBias, LowRankBias

SELF_CHECKED = trust.Verdict(True, "self-checked in this process")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Larger ones than in other files: fewer programs to interpret."""
    if DEVICE == "cpu":
        set_tiles(monkeypatch, 64, 64)


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch):
    monkeypatch.setattr(trust, "_verdicts", {})


def call(kind="static", layout=(7, 5, 1), dtype=torch.float32, **changes):
    terms, _ = random_terms(kind, layout)
    tokens = layout[0] * layout[1] + layout[2]
    return dataclasses.replace(call_of(qkv(tokens, dtype=dtype), terms), **changes)


def choose(call):
    """As on a device."""
    return picker._on_device(call)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "dropout_p"),
    [
        ("static", torch.float16, 0.0),
        ("all", torch.float32, 0.0),
        ("value and all", torch.bfloat16, 0.3),
    ],
)
def test_a_right_kernel_passes(kind, dtype, dropout_p):
    assert trust.verdict(call(kind, dtype=dtype, dropout_p=dropout_p)) == SELF_CHECKED


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ((32, 32, 1), 12),  # 384 patches, whole tiles as of 1024
        ((14, 14, 1), 14),
        ((24, 24, 1), 18),  # 432 leave over 48, as 576 leave 64: no large tiles
        ((36, 36, 0), 32),  # 1152 leave over nothing, 1296 leave 16; multiples of 16 both
        ((28, 28, 0), 24),  # 672, a multiple of 16 as 784
        ((3, 5, 2), 3),
        ((1, 700, 1), 1),
    ],
)
def test_a_trial_runs_the_kernels_of_the_call(layout, rows):
    (term,), _ = random_terms("static", layout, batch=1, heads=1)
    tokens = layout[0] * layout[1] + layout[2]
    given = call_of([torch.zeros(1, 1, tokens, 16, device=DEVICE)] * 3, [term])
    small = trial._Small(given).call
    assert trial.call_layouts(small) == {TokenLayout(rows, *layout[1:])}
    assert trial.grid_of(small)[:2] == trial.grid_of(given)[:2] == layout[1:]
    assert trial.grid_of(small)[3:] == trial.grid_of(given)[3:]


@pytest.mark.parametrize(("tokens", "fewer"), [(100, 100), (385, 385), (1000, 488), (1024, 384)])
def test_a_trial_without_a_grid_leaves_over_as_many_tokens(tokens, fewer):
    """Three tiles of 128, and what is left of the call's."""
    small = trial._Small(call_of([torch.zeros(1, 1, tokens, 16, device=DEVICE)] * 3, [])).call
    assert small.query.shape[2] == fewer


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("shape", [(36, 36), (2, 3, 36, 36), (2, 1, 1, 36)])
def test_a_trial_has_a_mask_of_the_kind_of_the_call(dtype, shape):
    small = trial._Small(call(attn_mask=torch.ones(shape, device=DEVICE).to(dtype))).call
    expected = [min(*sizes) for sizes in zip((1, 1, *shape)[-4:], small.query.shape, strict=True)]
    sides = [1 if size == 1 else len(small.query[0, 0]) for size in (1, 1, *shape)[-2:]]
    assert (small.attn_mask.dtype, [*small.attn_mask.shape]) == (dtype, expected[:2] + sides)
    assert small.attn_mask.unique().numel() > 1


def test_a_trial_has_the_form_of_tables_of_the_call(monkeypatch):
    seen = []
    read_call = trial.triton.read_call
    monkeypatch.setattr(
        trial.triton, "read_call", lambda *args: (seen.append(read_call(*args)), seen[-1])[1]
    )
    monkeypatch.setattr(forms, "MOST_SLOTS", 300)
    large = call("static", (9, 5, 1))  # 17 * 6 * 5 slots
    assert trust.kind_of(large).grid == (5, 1, False, False, False)
    assert trust.verdict(large) == SELF_CHECKED
    assert trust.verdict(call("static", (3, 5, 1))) == SELF_CHECKED
    assert [operands.is_blocked for operands in seen] == [False, True]
    assert len(trust._verdicts) == 2


def test_what_runs_other_kernels_is_of_another_kind():
    left, right = torch.randn(2, 1, 3, 36, 2, device=DEVICE)
    (exact,), _ = random_terms("static", (7, 5, 1), batch=1)
    calls = [
        call(),
        call(terms=(exact,)),  # summed over images
        call_of([x[:1] for x in qkv(36)], [exact]),
        call(terms=(LowRankBias(left, right, wide=True),)),
        call(terms=(LowRankBias(left, right, wide=True, exact=exact),)),
    ]
    left, right = left.requires_grad_(), right.detach()
    calls += [call(terms=(LowRankBias(*each),)) for each in ((left, right), (right, left))]
    assert len(set(map(trust.kind_of, calls))) == len(calls)


def test_a_trial_trains_what_the_call_trains(monkeypatch):
    left, right = torch.randn(2, 1, 3, 36, 2, device=DEVICE)
    given = call(terms=(LowRankBias(left.requires_grad_(), right.detach()),))
    seen = []
    gradients = run.run_backward
    monkeypatch.setattr(
        run, "run_backward", lambda *args: (seen.append(args[-1]), gradients(*args))[1]
    )
    assert trust.verdict(given) == SELF_CHECKED
    assert seen == [[True, True, True, False, False, False, True, False]]


def test_an_aligned_number_of_tokens_is_of_another_kind():
    def grid(rows):
        (term,), _ = random_terms("static", (rows, 28, 0), batch=1)
        tokens = torch.zeros(1, 1, rows * 28, 16, device=DEVICE)
        return trust.kind_of(call_of([tokens] * 3, [term])).grid

    assert grid(32) == (28, 0, True, True, True)
    assert grid(33) == (28, 0, True, True, False)


def test_a_trial_sums_over_images_in_a_loop(monkeypatch):
    (exact,), _ = random_terms("static", (7, 5, 1), batch=1)
    seen = []
    table_gradient = launch.Launcher.__call__

    def launched(self, name, kernel, count, *args, **options):
        seen.extend(args[-1:] if name == "table" else ())
        table_gradient(self, name, kernel, count, *args, **options)

    monkeypatch.setattr(launch.Launcher, "__call__", launched)
    assert trust.verdict(call(terms=(exact,))) == SELF_CHECKED
    assert seen == [2]


@pytest.mark.parametrize("kind", ["static", "low_rank"])
def test_a_key_that_is_not_seen_is_found_in_16_bits(kind, monkeypatch):
    layout = (14, 14, 1)
    given = call(kind, layout, dtype=torch.bfloat16)
    dropped = []

    def without(call, is_blocked):
        keep = torch.ones(197, device=DEVICE, dtype=torch.bool)
        keep[dropped] = False
        return trial.reference.compute(dataclasses.replace(call, attn_mask=keep[None]))

    monkeypatch.setattr(trial.triton, "compute", without)
    assert trial.fault_of(given, is_trained=False) is None
    for key in (0, 1, 17, 128, 195, 196):
        dropped[:] = [key]
        assert re.match("output is off by", trial.fault_of(given, is_trained=False) or "")


@pytest.mark.slow
def test_a_large_call_has_a_small_trial_and_a_choice(monkeypatch):
    shapes = []
    compute = trial.triton.compute
    monkeypatch.setattr(
        trial.triton,
        "compute",
        lambda call, *form: (shapes.append(call.query.shape), compute(call, *form))[1],
    )
    monkeypatch.setattr(trial, "TOKENS", 150)
    mask = torch.rand(1, 1, 9 * 20 + 2, 9 * 20 + 2, device=DEVICE) > 0.1
    choice, why = choose(call("query", (9, 20, 2), attn_mask=mask))
    assert choice == "triton"
    assert "kernels self-checked in this process" in why
    assert shapes == [(2, 2, 8 * 20 + 2, 16)]


def broken_slots(monkeypatch):
    """Every pair reads the bucket beside its own."""
    slots = launch.slot_offsets
    monkeypatch.setattr(launch, "slot_offsets", lambda *args: slots(*args).roll(1))


def broken_table_gradient(monkeypatch):
    """The sums of the last image are lost."""
    by_pair = run._Backward._by_pair

    def broken(self, delta):
        by_pair(self, delta)
        self.grads[3][..., 0] = 0

    monkeypatch.setattr(run._Backward, "_by_pair", broken)


def broken_rest(monkeypatch):
    """What is not finite is no number that is nearly right."""
    forward = run.run_forward

    def broken(given):
        out, lse, sums = forward(given)
        out[0, 0, -1] = torch.nan
        return out, lse, sums

    monkeypatch.setattr(run, "run_forward", broken)


def broken_compiler(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("ptxas fatal: no such thing\nmore")

    monkeypatch.setattr(run.Launcher, "__call__", fail)


BROKEN = [
    (broken_slots, "output is off by"),
    (broken_table_gradient, r"the gradient of LookupBias.lookup \(0\) is off by"),
    (broken_rest, "output is off by nan"),
    (broken_compiler, "RuntimeError: ptxas fatal: no such thing$"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_a_broken_kernel_is_not_taken_and_one_warning_names_it(broken, message, monkeypatch):
    broken(monkeypatch)
    kind = (
        r"float32, heads of 16 and 20, LookupBias by one of each image trained, training, rows of 5"
    )
    with pytest.warns(UserWarning, match=rf"failed their self-check on \w+ \({kind}\): ") as seen:
        choice, why = choose(call())
    assert len(seen) == 1
    assert choice == "sdpa"
    fault = why.removeprefix(f"{picker.WITH_MASK}; the kernels failed their self-check: ")
    assert fault != why
    assert re.match(message, fault)
    with warnings.catch_warnings():  # the second is told nothing, and not checked again
        warnings.simplefilter("error")
        monkeypatch.setattr(trial, "fault_of", None)
        assert choose(call())[0] == "sdpa"


def test_what_is_not_trained_has_no_backward_that_could_be_broken(monkeypatch):
    broken_table_gradient(monkeypatch)
    with torch.no_grad():
        assert trust.verdict(call()) == SELF_CHECKED


def test_dropout_that_keeps_too_much_is_found(monkeypatch):
    forward = run.run_forward
    monkeypatch.setattr(
        run, "run_forward", lambda given: forward(given._replace(dropout_p=0.5 * given.dropout_p))
    )
    with pytest.warns(UserWarning, match=r"ArithmeticError: dropout keeps 0\.[78]\d of the"):
        assert not trust.verdict(call(dropout_p=0.4)).is_trusted


def test_wide_factors_are_checked_as_wide(monkeypatch):
    left, right = torch.randn(2, 1, 3, 36, 2, device=DEVICE).requires_grad_()
    (exact,), _ = random_terms("static", (7, 5, 1))
    wide = LowRankBias(left, right, wide=True, exact=LookupBias(exact.lookup, exact.index))
    given = dataclasses.replace(call(dtype=torch.float16), terms=(wide,))
    assert trust.kind_of(given).terms == (
        "LowRankBias of rank 2 (wide) or its table of each image trained",
    )
    seen = []
    read_call = trial.triton.read_call
    monkeypatch.setattr(
        trial.triton, "read_call", lambda *args: (seen.append(read_call(*args)), seen[-1])[1]
    )
    assert trust.verdict(given) == SELF_CHECKED
    assert seen[0].is_wide
    assert seen[0].left is None


def test_the_caller_sees_nothing_of_the_check():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    given = call(dropout_p=0.2)
    numbers = torch.get_rng_state()
    assert not torch.equal(before, numbers)

    def count(tensor):
        raise AssertionError("a tensor of the check was saved by the caller's hooks")

    with torch.autograd.graph.saved_tensors_hooks(count, count):
        assert trust.verdict(given) == SELF_CHECKED
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(tensor.grad is None for tensor in (given.query, *given.terms[0].tensors().values()))


def test_under_inference_mode():
    with torch.inference_mode():
        assert trust.verdict(call()) == SELF_CHECKED
        assert torch.is_inference_mode_enabled()


@pytest.mark.slow
def test_a_compiled_graph_takes_what_was_checked_before():
    (term,), _ = random_terms("static", (7, 5, 1))
    inputs = qkv(36)

    def is_taken(q, k, v):
        return q.new_zeros(1) + (choose(call_of((q, k, v), [term]))[0] == "triton")

    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)

    def compiled():
        torch.compiler.reset()
        return torch.compile(is_taken, fullgraph=True, backend="eager")(*inputs).item()

    assert not compiled()
    assert not trust._verdicts
    assert is_taken(*inputs).item()
    assert compiled()


@pytest.mark.slow
def test_a_graph_of_symbols_takes_stock_operations():
    (term,), _ = random_terms("static", (7, 5, 1))
    inputs = qkv(36)
    assert choose(call_of(inputs, [term]))[0] == "triton"

    def choice_of(q, k, v):
        choice, why = choose(call_of((q, k, v), [term]))
        return q.new_zeros(1) + (choice == "triton") + len(why)

    torch.compiler.reset()
    compiled = torch.compile(choice_of, fullgraph=True, dynamic=True, backend="eager")
    why = f"{picker.WITH_MASK}; sizes are symbols in this graph, and kernels are made for numbers"
    assert compiled(*inputs).item() == len(why)
    torch.compiler.reset()


def test_nothing_runs_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(trust, "_is_capturing", lambda: True)
    choice, why = choose(call())
    assert choice == "sdpa"
    assert why.endswith("the kernels were not self-checked before this graph was made")
    assert not trust._verdicts


def test_a_recorded_run_needs_no_check(monkeypatch, tmp_path):
    version = trust.importlib.metadata.version("triton")
    records = tmp_path / "proven.json"
    records.write_text(
        json.dumps(
            [
                {"architecture": "sm_80", "triton": "0.1"},
                {"architecture": "sm_90", "triton": version},
            ]
        )
    )
    monkeypatch.setattr(trust, "RECORDS", records)
    monkeypatch.setattr(trial, "fault_of", None)
    trust._proof_of.cache_clear()
    monkeypatch.setattr(trust, "architecture", lambda device: "sm_90")
    assert trust.verdict(call()) == (True, f"proven on sm_90 with Triton {version}")
    monkeypatch.setattr(trust, "architecture", lambda device: "sm_80")
    monkeypatch.setattr(trial, "fault_of", lambda *_: None)
    assert trust.verdict(call()) == SELF_CHECKED
    trust._proof_of.cache_clear()


def test_the_records_of_the_package_are_whole():
    for record in json.loads(trust.RECORDS.read_text()):
        assert {"architecture", "triton", "torch", "commit", "checks"} <= set(record)
