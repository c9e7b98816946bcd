"""The examples run, and write what they promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests run beside
    done = subprocess.run(
        command, cwd=cwd, env=one_thread, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart(tmp_path):
    out = run("quickstart.py", cwd=tmp_path)
    changed = next(line for line in out.splitlines() if line.startswith("logits changed by"))
    assert float(changed.split()[-1]) < 1e-5
    assert "new parameters: 2,400" in out
    assert "reloaded, equal: True" in out
    assert (tmp_path / "quickstart.safetensors").is_file()


@pytest.mark.examples
def test_compare_encodings(tmp_path):
    chosen = ["none", "learned", "peg", "irpe"]
    options = ["--passes", "160", "--seeds", "2", "--workers", "1", "--out", str(tmp_path)]
    out = run("compare_encodings.py", *options, "--encodings", *chosen, cwd=tmp_path)
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["encoding"] for row in report["rows"]] == chosen
    assert [row["new parameters"] for row in report["rows"]] == [0, 4000, 800, 2000]
    for row in report["rows"]:
        assert 0 < row["CLS"] <= 100
        assert 0.3 < row["forward time"] < 5
        assert f"| {row['encoding']} |" in out
    assert "against no position, CLS: " in (tmp_path / "comparison.md").read_text()
    for picture in ("accuracy.png", "bias_from_center.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
