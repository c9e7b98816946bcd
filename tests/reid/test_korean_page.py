"""The Korean page can be typed as it stands, leads somewhere, and agrees with the English one."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from data.market import KINDS
from pictures import PICTURES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reid" / "README.ko.md"
TEXT = PAGE.read_text(encoding="utf-8")
ENGLISH = (ROOT / "examples" / "reid" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
COMMANDS = [shlex.split(line)[1:] for line in LINES if "examples/reid/" in line]
SCRIPTS = sorted({script for script, *_ in COMMANDS})


def test_all_steps_are_there():
    names = {Path(script).stem for script in SCRIPTS}
    assert names == {*("demo", "generate", "train", "evaluate", "pictures", "floors", "experiment")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_know_options_and_choices(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    shown = capsys.readouterr().out
    choices = dict(re.findall(r"(--[\w-]+) \{([^}]*)\}", shown))
    for name, *words in COMMANDS:
        option = ""
        for word in words if name == script else ():
            if word.startswith("--"):
                option = word
                assert re.search(rf"{word}\b", shown), word
            elif option in choices:
                assert word in choices[option].replace("\n", "").split(","), word


def test_options_in_tables_exist(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / "examples" / "reid" / "train.py"), run_name="__main__")
    shown = capsys.readouterr().out
    (table,) = re.findall(r"\| 하고 싶은 일 .*?\n\n", TEXT, flags=re.DOTALL)
    own = set(re.findall(r"--[a-z][\w-]*", table)) - {"--num-processes", "--logdir"}
    assert len(own) > 4
    assert {option for option in own if not re.search(rf"{option}\b", shown)} == set()


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) > 5
    assert [link for link in links if not (PAGE.parent / link).is_file()] == []


def test_market_is_trained_as_in_english():
    (command,) = [line for line in LINES if "--pretrained" in line]
    assert command in ENGLISH


def test_every_picture_and_data_set_is_explained():
    assert set(re.findall(r"^\| `(\w+)\.png`", TEXT, flags=re.MULTILINE)) == set(PICTURES)
    (line,) = [line for line in TEXT.splitlines() if line.startswith("다른 데이터 세트는")]
    assert set(re.findall(r"`(\w+)`", line)) | {"market1501"} == set(KINDS)


def test_english_pages_lead_here():
    assert "docs/reid/README.ko.md" in ENGLISH
