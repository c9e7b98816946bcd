"""The benchmarks measure what they say, and print no number for a wrong result."""

import json

import bench_attention
import check
import pytest
import table
import torch
from cases import SHAPES, Shape, inputs, parse_case
from contenders import Encoded, Ours, Plain, expand_backends
from measure import Roof, Setting, absolute, term_bytes
from memory import allocations, peak_bytes
from peers import OfficialPeer, find_official, peers_of
from timing import Times, measured_bandwidth, measured_ceiling, paired_times

import posenc
from posenc.attention import api
from posenc.attention.backends import sdpa

CPU = torch.device("cpu")
TINY = Shape(batch=2, heads=2, head_dim=16, height=2, width=3)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)


def run(tmp_path, *arguments):
    """The rows of a run at the tiny shape."""
    out = tmp_path / "out.json"
    bench_attention.main(["--shapes", "tiny", "--pairs", "3", "--json", str(out), *arguments])
    return json.loads(out.read_text())


def test_a_label_is_a_name_and_options():
    case = parse_case("irpe  on=qk mode=bias ratio=2.5 share_heads=False")
    assert case.label == "irpe on=qk mode=bias ratio=2.5 share_heads=False"
    assert case.name == "irpe"
    assert case.options == {"on": "qk", "mode": "bias", "ratio": 2.5, "share_heads": False}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("irp", "unknown encoding"),
        ("irpe qk", "expected key=value"),
        ("irpe of=k", "of"),
        ("peg", "acts on tokens"),
    ],
)
def test_a_wrong_label_says_why(label, message):
    with pytest.raises(ValueError, match=message):
        parse_case(label)


def test_all_backends_are_those_that_there_are():
    assert expand_backends(["auto", "all", "sdpa"]) == ["auto", *api.BACKENDS]


def test_memory_is_the_peak_of_what_lives_at_once():
    def function():
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(2000, dtype=torch.uint8)
        del first
        third = torch.empty(500, dtype=torch.uint8)
        return len(second) + len(third)

    changes = allocations(function)
    assert changes[:4] == [1000, 2000, -1000, 500]
    assert sorted(changes[4:]) == [-2000, -500]
    assert peak_bytes(function, CPU) == 3000


def test_memory_counts_what_the_first_call_leaves_behind():
    kept = []

    def function():
        if not kept:
            torch.empty(9000, dtype=torch.uint8)  # only to build it
            kept.append(torch.empty(4000, dtype=torch.uint8))
        return torch.empty(1000, dtype=torch.uint8)

    assert peak_bytes(function, CPU) == 5000


def test_memory_of_a_training_step_counts_the_backward():
    x = torch.randn(256, 256, requires_grad=True)

    def function():
        return torch.autograd.grad((x.exp() * 2).sum(), x)

    assert peak_bytes(function, CPU) >= 2 * x.nbytes  # the saved result, and the gradient


def test_pairs_are_as_many_as_asked_for():
    calls = []
    times = paired_times(lambda: calls.append("a"), lambda: calls.append("b"), CPU, pairs=4)
    assert len(times.plain) == len(times.other) == 4
    assert "".join(calls) == "ab" * 6  # two rounds warm up


def test_the_roofline_is_that_of_plain_attention_and_the_tensors_of_terms():
    times = Times(plain=(1.0, 1.0), other=(2.0, 2.0))
    flops = 4 * TINY.batch * TINY.heads * 7**2 * TINY.head_dim  # 2x3 patches and one prefix
    size = 4 * 4 * TINY.batch * TINY.heads * 7 * TINY.head_dim + 1000
    for backward, more_flops, moves in ((False, 1, 1), (True, 3.5, 3)):
        for roof, seconds in (
            (Roof(1e6, 1e12), flops * more_flops / 1e6),
            (Roof(1e12, 1e6), size * moves / 1e6),
        ):
            setting = Setting(CPU, torch.float32, backward, pairs=None, roof=roof)
            numbers = absolute(times, TINY, 1000, setting)
            assert numbers["milliseconds"] == 2000
            assert numbers["roofline_milliseconds"] == pytest.approx(seconds * 1000)
            assert numbers["share_of_roofline"] == pytest.approx(seconds / 2)
    assert measured_ceiling(CPU, torch.float32, size=16) > 0
    assert measured_bandwidth(CPU, size=16) > 0


def test_bytes_of_terms():
    case = parse_case("irpe on=qkv")
    module, _ = Ours(case, "auto").build(TINY, CPU, torch.float32)
    tensors = inputs(TINY, CPU, torch.float32)
    terms = module.encoding(*tensors[:2], TINY.layout)
    assert term_bytes(module, tensors) == sum(
        tensor.numel() * 4 for term in terms for tensor in term.tensors().values()
    )
    assert term_bytes(Plain(), tensors) == 0


def test_the_table():
    numbers = {"median": 1.234, "low": 1.2, "high": 1.3, "memory_ratio": 2.04}
    nothing = dict.fromkeys(numbers)
    rows = [
        {"case": "swin", "backend": "auto", "shape": "a", "backend_used": "sdpa", **numbers},
        {"case": "swin", "backend": "auto", "shape": "b", "backend_used": "reference", **numbers},
        {"case": "irpe", "backend": "sdpa", "shape": "a", "backend_used": "sdpa", **numbers},
        {"case": "irpe", "backend": "sdpa", "shape": "b", "failure": "rejected", **nothing},
    ]
    assert table.markdown(rows).splitlines() == [
        "| encoding | backend | a | memory | b | memory |",
        "| --- | --- | --- | --- | --- | --- |",
        "| `swin` | auto (sdpa: a, reference: b) | 1.23 (1.20-1.30) | 2.0x | 1.23 (1.20-1.30) | "
        "2.0x |",
        "| `irpe` | sdpa | 1.23 (1.20-1.30) | 2.0x | rejected | - |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--backward"], ["--dtype", "bfloat16"]])
def test_a_run(tiny, tmp_path, capsys, options):
    picture = tmp_path / "out.png"
    report = run(tmp_path, "--backends", "auto", "reference", "--plot", str(picture), *options)
    rows = report["ratios_to_plain_sdpa"]
    assert [row["failure"] for row in rows] == [None] * 17  # 8 encodings twice, 1 peer
    assert all(row["low"] <= row["median"] <= row["high"] for row in rows)
    assert all(row["memory_ratio"] > 0.5 for row in rows)
    assert {row["backend_used"] for row in rows if row["backend"] == "auto"} <= set(api.BACKENDS)
    assert {"commit", "timm", "torch", "python", "threads", "device", "dtype"} < set(report)
    assert picture.stat().st_size > 10_000
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| `human_part` | reference |")


def test_every_encoding_inside_attention_can_be_measured(tiny, tmp_path):
    rows = run(tmp_path, "--encodings", "all")["ratios_to_plain_sdpa"]
    ours = {row["case"] for row in rows if row["backend"] == "auto"}
    classes = {name: posenc.registry.encoding_class(name) for name in posenc.list_encodings()}
    assert ours == {n for n, cls in classes.items() if issubclass(cls, posenc.AttentionEncoding)}
    assert {row["case"]: row["failure"] for row in rows if row["failure"]} == {}
    assert next(row for row in rows if row["case"] == "convit")["backend_used"] == "sdpa + sdpa"


def test_a_rejected_call_says_why(tiny, tmp_path):
    row = run(tmp_path, "--encodings", "irpe", "--backends", "lowrank")["ratios_to_plain_sdpa"][0]
    assert row["median"] is None
    assert row["failure"] == "rejected"
    assert "low-rank" in row["reason"]


def test_a_wrong_output_prints_no_number(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sdpa, "compute", lambda call: call.value * 1.001)
    options = ["--encodings", "quadratic", "--backends", "sdpa", "reference"]
    wrong, right = run(tmp_path, *options)["ratios_to_plain_sdpa"]
    assert (wrong["median"], wrong["failure"]) == (None, "wrong output")
    assert right["median"] > 0
    assert "| `quadratic` | sdpa | wrong output | - |" in capsys.readouterr().out


def test_a_wrong_gradient_is_found():
    class WithoutGradientOfKey(Encoded):
        def forward(self, q, k, v):
            return super().forward(q, k.detach(), v)

    module, definition = Ours(parse_case("swin"), "reference").build(TINY, CPU, torch.float32)
    tensors = inputs(TINY, CPU, torch.float32)
    assert check.find_error(module, definition, tensors, backward=True) is None
    broken = WithoutGradientOfKey(module.encoding, module.layout, "reference")
    assert check.find_error(broken, definition, tensors, backward=False) is None
    assert check.find_error(broken, definition, tensors, backward=True) == "wrong gradient"
    assert check.find_error(Plain(), definition, tensors, backward=False) == "wrong output"


def test_the_official_peer_is_for_encodings_that_it_has(tmp_path):
    assert peers_of(parse_case("irpe"), None) == []
    assert peers_of(parse_case("irpe prefix_pairs=none"), tmp_path) == []
    (peer,) = peers_of(parse_case("irpe method=cross on=qk mode=bias"), tmp_path)
    assert isinstance(peer, OfficialPeer)
    assert peer.case == "peer: official iRPE cross bias qk"
    with pytest.raises(FileNotFoundError, match="git clone"):
        find_official(tmp_path)
