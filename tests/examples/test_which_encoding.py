"""The comparison of encodings from its command to its page, in the smallest form."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import which_encoding
from which.plan import Plan
from which.results import Job
from which.tiers import TIERS, smallest

ROOT = Path(__file__).parents[2]
NAMES = ["--encodings", "none", "learned", "rope", "swin"]
SMALL = [*NAMES, "--seeds", "2", "--workers", "0"]


def call(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["which_encoding.py", "--dry", *map(str, options)])
    which_encoding.main()


def records_in(out):
    return json.loads((out / "results.json").read_text())["records"]


@pytest.mark.examples
def test_every_step_on_photographs(tmp_path):
    """As on a GPU, rehearsed on a CPU in a process of its own."""
    out = tmp_path / "run"
    command = [sys.executable, ROOT / "examples" / "which_encoding.py", "--tier", "gpu", "--dry"]
    done = subprocess.run(
        [*command, "--out", out, *NAMES, "--seeds", "1", "--workers", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    page = out.with_suffix(".md").read_text()
    for part in ("A guide", "Other sizes", "Few images", "three-cell", "papers claim", "agree?"):
        assert part in page
    assert "Not measured" not in page
    assert {path.name for path in out.glob("*.png")} == {"sizes.png", "rankings.png", "costs.png"}
    parts = {record["job"][0] for record in records_in(out)}
    assert parts == {"cells", "rate", "alone", "few", "beside", "cost"}
    assert json.loads((out / "guide.json").read_text())[0]["question"] in page


@pytest.mark.examples
def test_stopped_and_gone_on(tmp_path, fashion, monkeypatch, capsys):
    """In pieces it finds what it finds at once; what is there is not trained again."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    options = ["--data", fashion, *SMALL]
    call(monkeypatch, "--out", whole, *options, "--only", "images", "size")
    call(monkeypatch, "--out", pieces, *options, "--only", "images", "size", "--minutes", 0)
    assert records_in(pieces) == []
    assert "goes on" in capsys.readouterr().err

    calls = []
    find_out = which_encoding.find_out

    def stop_after_five(job, *rest):
        calls.append(job)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return find_out(job, *rest)

    monkeypatch.setattr(which_encoding, "find_out", stop_after_five)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, "--out", pieces, *options, "--only", "images", "size")
    assert stop.value.code == 130
    assert len(records_in(pieces)) == 4
    call(monkeypatch, "--out", pieces, *options, "--only", "images", "size")
    assert len(calls) - 1 == len(records_in(pieces)) == len({*calls})
    assert numbers_of(pieces) == numbers_of(whole)


def test_workers_end_at_the_deadline(monkeypatch):
    """Trainings that wait then never begin, and are not waited for."""
    monkeypatch.setattr(which_encoding, "find_out", print)  # what workers can import
    jobs = [Job("alone", "swin", "CLS", seed) for seed in range(2_000)]
    plan = Plan(smallest(TIERS["cpu"]), ["swin"], 1, ["images"])
    deadline = time.monotonic() + 0.05  # over before the first worker is up
    found = []

    def run():
        with which_encoding.several(1) as pool:
            found.extend(which_encoding.finished(jobs, plan, Path(), {}, pool, deadline))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert len(found) < len(jobs)


def numbers_of(out):
    """Of each job, but for times."""
    kept = ("job", "tests", "other rule", "rate")
    return [{key: record.get(key) for key in kept} for record in records_in(out)]


def test_bad_calls_end_before_a_training(tmp_path, fashion, monkeypatch, capsys):
    for options, message in (
        (["--encodings", "swine"], "invalid choice: 'swine'"),
        (["--seeds", "0"], "must be at least 1, got 0"),
        (["--workers", "-1"], "must not be negative, got -1"),
        (["--only", "sizes"], "invalid choice: 'sizes'"),
        (["--data", tmp_path / "nothing"], "install Debian's dataset-fashion-mnist"),
    ):
        with pytest.raises(SystemExit):
            call(monkeypatch, "--out", tmp_path / "out", *options)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gpu_needs_photographs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["it", "--tier", "gpu", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        which_encoding.main()
    assert "--tier gpu needs --data" in capsys.readouterr().err


def test_a_gpu_tier_needs_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(which_encoding.torch.cuda, "is_available", lambda: False)
    options = ["--tier", "gpu", "--data", tmp_path, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["it", *map(str, options)])
    with pytest.raises(SystemExit):
        which_encoding.main()
    assert "--tier gpu needs a GPU, and torch sees none" in capsys.readouterr().err


def test_results_of_another_tier_are_refused(tmp_path, fashion, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text('{"tier": {"name": "other"}, "records": []}')
    with pytest.raises(SystemExit):
        call(monkeypatch, "--out", out, "--data", fashion)
    assert "left from a comparison with another tier" in capsys.readouterr().err
