"""What is run on a GPU: time, failures and results. `make gpu-dry` rehearses all of it."""

import importlib.util
import json
import operator
import os
import time
from functools import partial
from pathlib import Path

import gpu_parts
import interpreter
import on_gpu
import pytest
import torch
from gpu import checks, correctness, picker, ratios, tiles
from gpu.ahead import compile_ahead
from gpu.part import Part
from gpu.summary import markdown
from gpu.workers import Workers

from posenc.attention.backends import triton
from posenc.attention.kernels import blocks
from posenc.attention.kernels.blocks import Blocks, Load
from posenc.bench.cases import all_cases

FACTS = {"architecture": "sm_90", "triton": "3.6.0", "torch": "2.11.0", "commit": "abc"}
CALL = "terms: static, bfloat16, 14x14+1"


def part_of(folder, name="ratios", seconds=60.0):
    head = {"command": "test", "device": "none", "timm": "1", "python": "3", **FACTS}
    return Part(name, folder, time.time() + seconds, dry=False, head=head)


# Time, processes, failures


@pytest.fixture
def run_parts(tmp_path, monkeypatch):
    """Reports by name of a run of fake parts."""

    def run(seconds, **functions):
        monkeypatch.setattr(on_gpu, "SHARES", dict.fromkeys(functions, 1.0))
        tasks = {
            name: partial(gpu_parts.run, function, name, tmp_path)
            for name, function in functions.items()
        }
        on_gpu.run_all(tasks, tmp_path, seconds)
        return {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in functions}

    return run


def test_a_part_that_fails_is_written_down_and_the_next_runs(run_parts):
    reports = run_parts(60, ratios="raises", tiles="dies", models="finds")
    assert [report["status"] for report in reports.values()] == ["failed", "failed", "complete"]
    assert [len(report["rows"]) for report in reports.values()] == [1, 1, 2]
    assert "ZeroDivisionError: on purpose" in reports["ratios"]["traceback"]
    assert reports["tiles"]["traceback"] == "its process ended with code 9"
    assert on_gpu.exit_code(reports) == 2


@pytest.mark.slow
def test_a_part_is_cut_or_stopped_and_keeps_what_it_found(run_parts):
    """What one part does not use is left to the next."""
    started = time.time()
    reports = run_parts(12, ratios="takes_too_long", tiles="hangs", models="finds")
    assert time.time() - started < 12
    assert reports["ratios"]["status"] == "cut"
    assert reports["ratios"]["rows"] == [{"cell": "first"}]
    assert reports["ratios"]["skipped"] == ["second", "third"]
    assert reports["tiles"]["status"] == "stopped"
    assert reports["tiles"]["rows"] == [{"found": 1}]
    assert reports["models"]["status"] == "complete"
    assert on_gpu.exit_code(reports) == 0


def test_without_time_nothing_begins(run_parts):
    assert run_parts(0, ratios="finds")["ratios"]["status"] == "not begun"


def test_results_are_written_as_they_come(tmp_path):
    part = part_of(tmp_path)
    for count in (1, 2):
        part.add({"row": count})
        report = json.loads((tmp_path / "ratios.json").read_text())
        assert report["rows"][-1] == {"row": count}
        assert report["status"] == "running"
    part.end()
    assert json.loads((tmp_path / "ratios.json").read_text())["status"] == "complete"
    assert os.listdir(tmp_path) == ["ratios.json"]


def test_a_task_that_fails_costs_itself():
    tasks = {
        "divides": partial(operator.truediv, 3, 2),
        "raises": partial(operator.truediv, 3, 0),
        "dies": partial(os._exit, 7),
        "last": partial(operator.add, 1, 1),
    }
    with Workers(1) as workers:
        outcomes = {o.name: o for o in workers.run(tasks, time.time() + 60)}
    assert list(outcomes) == list(tasks)
    assert [outcome.value for outcome in outcomes.values()] == [1.5, None, None, 2]
    assert "ZeroDivisionError" in outcomes["raises"].failure
    assert outcomes["dies"].failure == "its process ended with code 7"
    assert not any(outcome.was_stopped for outcome in outcomes.values())


def test_tasks_run_side_by_side_until_the_time_is_over():
    tasks = {str(place): partial(time.sleep, 600) for place in range(3)}
    with Workers(2) as workers:
        outcomes = list(workers.run(tasks, time.time() + 1))
    assert {outcome.name for outcome in outcomes} == {"0", "1"}
    assert all(outcome.was_stopped for outcome in outcomes)


def test_what_does_not_compile_ahead_is_noted(tmp_path):
    part = part_of(tmp_path)
    tasks = {"good": partial(int, 1), "bad": partial(int, "x")}
    compile_ahead(part, tasks, share=0.9)
    found = part.report["compiled_ahead"]
    assert (found["tasks"], found["done"]) == (2, 1)
    assert "invalid literal" in found["failures"]["bad"]


def test_without_a_device_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with pytest.raises(SystemExit, match="no CUDA device; --dry rehearses"):
        on_gpu.main(["--out", str(tmp_path)])


# Correctness


def test_the_checks_are_of_everything():
    names = list(correctness.checks(correctness.REAL))
    for case in all_cases():
        for dtype in ("bfloat16", "float32"):
            assert any(name.startswith(f"encodings: {case.label}, {dtype}") for name in names)
    for kind in correctness.KINDS:
        for dtype in ("bfloat16", "float32", "float16"):
            of_kind = [name for name in names if name.startswith(f"terms: {kind}, {dtype}, ")]
            assert {name.rpartition("+")[2] for name in of_kind} == set("0125")
    families = {name.partition(":")[0] for name in names}
    assert families >= {"races", "deterministic", "masks", "dropout", "widths", "plain"}
    dry = {name.partition(":")[0] for name in correctness.checks(correctness.DRY)}
    assert dry == families - {"autotuned"}


@pytest.fixture
def _interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    interpreter.repair(monkeypatch)


@pytest.mark.usefixtures("_interpreted")
def test_a_wrong_kernel_is_found(monkeypatch):
    compute = triton.compute
    assert checks.terms("static", (2, 3, 1), "float32", (16, 16))["error"] < 1e-6
    monkeypatch.setattr(triton, "compute", lambda call: compute(call) * 1.0001)
    for check in (
        partial(checks.terms, "static", (2, 3, 1), "float32", (16, 16)),
        partial(checks.encoding, "swin", "triton", (1, 2, 16), (2, 3, 1), "float32"),
        partial(checks.plain, 5, 9, "float32", (16, 16), True),
    ):
        with pytest.raises(AssertionError, match=r"errors above 7\.6e-06 of the largest entry"):
            check()


@pytest.mark.usefixtures("_interpreted")
@pytest.mark.parametrize("fixed", [True, False])
def test_a_race_is_found(monkeypatch, fixed):
    compute, calls = triton.compute, []

    def changing(call):
        calls.append(call)
        return compute(call) * (1 + 1e-4 * len(calls))

    monkeypatch.setattr(triton, "compute", changing)
    with pytest.raises(AssertionError, match="runs differ by"):
        checks.repeated("static", (2, 3, 1), "float32", (16, 16), runs=2, fixed=fixed)


def test_no_number_is_an_error():
    with pytest.raises(AssertionError, match="nan"):
        checks.judged({"out": 0.0, "query": float("nan")}, 1.0)


def test_other_programs_fail_or_take_too_long(monkeypatch):
    assert checks._in_process(["echo", "fine"]) == {"output": "fine\n"}
    with pytest.raises(AssertionError, match="no such option"):
        checks._in_process(["sh", "-c", "echo no such option; exit 3"])
    monkeypatch.setattr(checks, "SECONDS", 0.2)
    assert checks._in_process(["sleep", "600"]) == {"skipped": "it takes more than 0.2 s"}


@pytest.mark.parametrize(
    ("other", "passed", "skipped", "proven"),
    [
        ("masks: None, NN, boolean", True, [], True),
        ("masks: None, NN, boolean", False, [], False),
        ("masks: None, NN, boolean", None, [], False),
        ("suite: test_masks.py", None, ["suite: test_terms.py"], True),
        ("suite: test_masks.py", False, [], False),
        ("backends: sdpa, swin, float32", False, [], True),
        ("suite: test_masks.py", True, ["dropout: static"], False),
    ],
)
def test_kernels_are_proven_by_all_checks_of_them(tmp_path, other, passed, skipped, proven):
    part = part_of(tmp_path, "correctness")
    for name, result in ((CALL, True), (other, passed)):
        part.add({"check": name, "family": name.partition(":")[0], "passed": result})
    part.skip(skipped)
    record = correctness.proof(part)
    assert (record is not None) == proven
    if proven:
        assert record["checks"] == 1 + (passed is True)
        assert {name: record[name] for name in FACTS} == FACTS


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1), (None, 0)])
def test_the_exit_code_says_whether_the_kernels_are_right(passed, code):
    correct = {"status": "cut", "rows": [{"passed": True}, {"passed": passed}]}
    assert on_gpu.exit_code({"correctness": correct, "models": {"status": "complete"}}) == code
    in_rehearsal = {"correctness": {**correct, "dry": True}}
    assert on_gpu.exit_code(in_rehearsal) == (code or 2)  # where nothing is cut


# What is measured


def test_what_goals_are_about_is_measured_first():
    cells = list(ratios.cells(tuple(ratios.SHAPES), None, dry=False))
    first = [str(cell) for cell in cells[:14]]
    assert all("1025" in cell for cell in first)
    assert {cell.partition(", 1025")[0] for cell in first} == {
        *(f"plain, {kernel}" for kernel in ("flash", "cudnn", "efficient")),
        *(f"{case}, triton" for case in ("swin", "irpe", "human_part", "irpe on=qkv")),
    }
    assert len(set(map(str, cells))) == len(cells)
    assert {cell.shape for cell in cells} == {"197", "577", "1025", "2305"}
    backends = {cell.contender.backend for cell in cells}
    assert backends >= {"triton", "sdpa", "lowrank", "flex", "reference", "default", "efficient"}


def test_an_error_is_a_row_with_its_reason():
    cell = ratios.Cell(ratios.PlainBy("cudnn"), "7", backward=False)  # which the CPU has not
    setting = ratios.Setting(torch.device("cpu"), torch.float32, False, 2, None)
    row = ratios.row_of(cell, ratios.DRY_SHAPES["7"], setting)
    assert (row["median"], row["failure"]) == (None, "error")
    assert row["reason"].startswith("RuntimeError: ")


def test_the_choice_of_auto_is_compared_with_the_fastest():
    rows = [
        {"case": "swin", "shape": "197", "pass": "forward", "deterministic": fixed, **row}
        for fixed, row in (
            (False, {"backend": "triton", "milliseconds": 2.0}),
            (False, {"backend": "sdpa", "milliseconds": 1.0}),
            (False, {"backend": "flex", "milliseconds": None}),
            (True, {"backend": "lowrank", "milliseconds": 0.1}),
            (False, {"backend": "peer", "milliseconds": 0.1}),
        )
    ]
    ((key, measured),) = picker.by_backend(rows).items()
    assert measured == {"triton": 2.0, "sdpa": 1.0}
    wrong = picker.row_of(key, "triton", "an estimate", measured)
    assert (wrong["fastest"], wrong["times_the_fastest"], wrong["is_right"]) == ("sdpa", 2, False)
    assert picker.row_of(key, "sdpa", "", measured)["is_right"] is True
    assert picker.row_of(key, "reference", "", measured)["is_right"] is None


# Tiles


def tile_rows(case, kernel, **milliseconds):
    """Of sizes by name; `default` is what the tables say."""
    sizes = {"default": None, "small": (32, 32, 4, 2), "odd": (128, 128, 8, 3)}
    return [
        {"case": case, "tile": name, "size": sizes[name], "milliseconds": {kernel: ms}}
        for name, ms in milliseconds.items()
    ]


ROWS = [
    *tile_rows("swin", "forward", default=1.0, small=0.5, odd=0.6),
    *tile_rows("irpe", "forward", default=1.0, small=0.9, odd=0.6),  # in the product, odd wins
    *tile_rows("irpe on=qk", "forward", default=1.0, small=0.8),
    *tile_rows("irpe on=qkv", "forward", default=1.0),  # small does not fit
    *tile_rows("human_part", "key", default=1.0, small=0.98, odd=0.9),
    *tile_rows("swin", "key", default=1.0, small=0.98, odd=2.0),  # not worth a change
]


def test_the_patch_makes_the_tables_choose_what_was_fastest(tmp_path):
    source = Path(blocks.__file__).read_text()
    new = tiles.with_tables(source, tiles.faster_tables(ROWS, 9))
    (tmp_path / "patched.py").write_text(new)
    spec = importlib.util.spec_from_file_location("patched", tmp_path / "patched.py")
    patched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(patched)

    def chosen(module, kernel, reads=0, factors="none", architecture=9):
        load = Load(architecture, 64, 2, reads, True, factors)
        return tuple(module.candidates(kernel, load)[0])

    assert chosen(patched, "forward") == (128, 128, 8, 3)
    assert chosen(patched, "key", factors="halves") == (128, 128, 8, 3)
    for same in (
        {"kernel": "forward", "reads": 2},
        {"kernel": "forward", "architecture": 8},
        {"kernel": "key"},
        {"kernel": "query"},
        {"kernel": "key", "factors": "halves", "architecture": 8},
    ):
        assert chosen(patched, **same) == chosen(blocks, **same)


def test_no_patch_where_nothing_is_faster():
    slower = [row for row in ROWS if row["size"] is None]
    assert tiles.faster_tables(slower, 9) == {}


def test_a_size_is_forced_on_all_kernels_and_forgotten():
    before = blocks.candidates
    with tiles.forced(Blocks(16, 16, 4, 1)):
        assert blocks.candidates("forward", None) == (Blocks(16, 16, 4, 1),)
        blocks._found["some call"] = Blocks(16, 16, 4, 1)
    assert blocks.candidates is before
    assert "some call" not in blocks._found


def test_the_tables(tmp_path):
    part = part_of(tmp_path, "correctness")
    part.add(
        {
            "check": CALL,
            "family": "terms",
            "passed": False,
            "error": None,
            "failure": "Traceback\nAssertionError: wrong",
        }
    )
    part.skip(["races: static"])
    part.end()
    other = part_of(tmp_path, "tiles")
    for row in ROWS[:3]:
        other.add(row)
    text = markdown({"correctness": part.report, "tiles": other.report})
    assert "# `test`" in text
    assert "## correctness: cut, 1 rows" in text
    assert f"- {CALL}: AssertionError: wrong" in text
    assert "No time for 1: races: static" in text
    assert "| `swin` | forward | 1.000 | small: 0.500; odd: 0.600; default: 1.000 |" in text
