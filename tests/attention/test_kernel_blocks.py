"""How sizes of tiles are chosen, and that the compiler takes the kernels: without a GPU."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

testing = pytest.importorskip("triton.testing")
from triton.runtime.errors import OutOfResources  # noqa: E402

from posenc.attention.kernels import blocks  # noqa: E402
from posenc.attention.kernels.blocks import (  # noqa: E402
    ALL,
    LEAST,
    TABLE,
    Load,
    candidates,
    run_best,
)

ROOT = Path(__file__).parents[2]
FACTORS = ("none", "halves", "float32")


@pytest.fixture(autouse=True)
def _nothing_found(monkeypatch):
    monkeypatch.setattr(blocks, "_found", {})
    monkeypatch.delenv("POSENC_AUTOTUNE", raising=False)


@pytest.mark.parametrize("kernel", ["forward", "query", "key", "table", "deltas"])
def test_candidates_end_with_the_smallest(kernel):
    sizes = itertools.product(
        (8, 9, 10, 12), (16, 64, 128, 256), (2, 4), (0, 1, 5), (False, True), FACTORS
    )
    for load in map(Load._make, sizes):
        options = candidates(kernel, load)
        assert options[0] in ALL
        assert options[-1] == LEAST
        areas = [size.queries * size.keys * size.stages for size in options]
        assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(("fills", "size"), [(True, blocks.LARGE), (False, blocks.HIGH)])
def test_large_tiles_where_few_keys_are_left_over(fills, size):
    assert candidates("forward", Load(9, 64, 2, 1, fills, "none"))[0] == size


def test_the_table_has_each_architecture_that_was_compiled_for():
    assert sorted(TABLE) == [8, 9]


def only(limit, calls):
    """Runs tiles of at most so many pairs, as a device with little shared memory."""

    def run(size):
        if size.queries * size.keys > limit:
            raise OutOfResources(1, 0, "shared memory")
        calls.append(size)

    return run


def test_smaller_tiles_where_there_is_no_room():
    calls = []
    load = Load(9, 64, 2, 0, False, "none")
    options = candidates("forward", load)
    for _ in range(2):
        run_best("key", options, only(32 * 32, calls), [])
    assert calls == 2 * [blocks.SMALL]
    with pytest.raises(OutOfResources):
        run_best("another key", options, only(8 * 8, calls), [])


def test_a_size_that_was_found_may_not_fit_for_long():
    """Calls that count as equal may need different room."""
    calls, options = [], candidates("forward", Load(9, 64, 2, 0, False, "none"))
    run_best("key", options, only(64 * 128, calls), [])
    run_best("key", options, only(32 * 32, calls), [])
    assert calls == [blocks.HIGH, blocks.SMALL]
    assert blocks._found["key"] == blocks.SMALL


def test_no_tuning_where_runs_must_agree(monkeypatch):
    monkeypatch.setenv("POSENC_AUTOTUNE", "1")
    monkeypatch.setattr(testing, "do_bench", None)
    torch.use_deterministic_algorithms(True)
    try:
        run_best("key", [blocks.SMALL, LEAST], only(32 * 32, calls := []), [])
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls == [blocks.SMALL]


def test_tuning_keeps_the_fastest_and_leaves_no_trace(monkeypatch):
    calls, sums = [], torch.zeros(3)

    def run(size):
        only(64 * 64, calls)(size)
        sums.add_(1)

    def do_bench(function, **options):
        function()
        return abs(calls[-1].queries - 32) + calls[-1].stages

    monkeypatch.setenv("POSENC_AUTOTUNE", "1")
    monkeypatch.setattr(testing, "do_bench", do_bench)
    run_best("key", [LEAST], run, [sums])
    assert calls[-1] == blocks.TINY
    assert torch.equal(sums, torch.ones(3))
    assert blocks.HIGH not in calls
    run_best("key", [LEAST], run, [sums])
    assert torch.equal(sums, torch.full((3,), 2.0))
    tried = [size for size in ALL if size.queries * size.keys <= 64 * 64]
    assert len(calls) == len(tried) + 2


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize(
    ("capability", "options"),
    [
        ("90", ["--dtype", "bfloat16", "--kinds", "static", "contextual", "causal"]),
        ("90", ["--dtype", "bfloat16", "--kinds", "value", "low rank", "--dropout", "--mask"]),
        ("80", ["--dtype", "float16", "--head-dim", "80", "--kinds", "static", "--deterministic"]),
        ("80", ["--dtype", "float32", "--kinds", "cross on q, k and v", "--mask"]),
        ("90", ["--dtype", "float32", "--kinds", "static", "--head-dim", "128"]),
    ],
)
def test_the_kernels_compile_and_fit(capability, options, tmp_path):
    """For devices that are not there; the interpreter is more lenient than the compiler."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "benchmarks/inspect_kernels.py"), "--grid", "14", "14"]
    subprocess.run(
        [*command, "--capability", capability, *options, "--json", str(report)],
        check=True,
        env=environment,
        capture_output=True,
    )
    rows = json.loads(report.read_text())["kernels"]
    main = {"forward", "query_gradients", "key_gradients"}
    assert {row["kernel"] for row in rows} >= main
    assert ("static" in options) == ("table_gradient" in {row["kernel"] for row in rows})
    for row in rows:
        assert row["shared"] <= {"80": 163, "90": 227}[capability] * 1024
        assert row["registers"] > 0
        assert row["spilled"] < 1024
        if row["kernel"] in main and "float32" not in options:
            # Random numbers are made of a hundred instructions.
            most = 300 if "--dropout" in options else 100
            assert 5 < row["instructions_per_score"] < most
            assert row["bound"] >= row["instructions_per_score"] / 128 - 1e-3
