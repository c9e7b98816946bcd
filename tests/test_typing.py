"""What type checkers tell a user of posenc: pyright at its strictest, on a script of a user."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "typing"
SCRIPT = FOLDER / "user_script.py"


@pytest.mark.slow
def test_a_users_script_is_typed_and_its_mistakes_are_seen():
    """By basedpyright, which is pyright packaged with the Node.js that it runs on."""
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", FOLDER]
    command += ["--pythonpath", sys.executable]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=here)
    report = json.loads(run.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    found = {
        (each["range"]["start"]["line"] + 1, each.get("rule")): each["message"]
        for each in report["generalDiagnostics"]
    }
    expected = {
        (number, rule)
        for number, line in enumerate(SCRIPT.read_text().splitlines(), start=1)
        for rule in re.findall(r"# error: (\w+)$", line)
    }
    assert len(expected) > 8
    assert found.keys() == expected, found
