"""What the example's page says can be typed."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "examples" / "reid" / "README.md"
COMMANDS = sorted(
    set(
        re.findall(r"(?:python|launch [^|`]*?) (examples/reid/\w+\.py[^|`\n]*)", README.read_text())
    )
)


def test_there_are_commands():
    assert {command.split()[0].split("/")[-1] for command in COMMANDS} == {
        *("demo.py", "train.py", "evaluate.py", "pictures.py", "floors.py", "experiment.py"),
        "generate.py",
    }


@pytest.mark.parametrize("script", sorted({command.split()[0] for command in COMMANDS}))
def test_scripts_know_the_options(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    for command in COMMANDS:
        name, *words = shlex.split(command)
        if name == script:
            assert {w for w in words if w.startswith("--")} <= known


def test_every_file_is_listed():
    folder = README.parent
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
    listed = set(re.findall(r"\(([\w/]+\.py)\)", README.read_text()))
    assert listed == {name for name in files if not name.endswith("__init__.py")}
