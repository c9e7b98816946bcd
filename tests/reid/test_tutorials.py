"""The tutorials can be typed as they stand, lead somewhere, and agree: English and Korean."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from data.market import KINDS
from pictures import PICTURES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reid"
README = (ROOT / "examples" / "reid" / "README.md").read_text(encoding="utf-8")
NAMES = "tutorial.md", "README.ko.md"
TEXTS = {name: (FOLDER / name).read_text(encoding="utf-8") for name in NAMES}


def typed(text):
    """All lines of its blocks of commands."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


LINES = typed(TEXTS["tutorial.md"])
COMMANDS = [shlex.split(line)[1:] for line in LINES if "examples/reid/" in line]
SCRIPTS = sorted({script for script, *_ in COMMANDS})


def test_all_steps_are_there():
    names = {Path(script).stem for script in SCRIPTS}
    assert names == {*("demo", "generate", "train", "evaluate", "pictures", "floors", "experiment")}


def test_both_have_the_same_commands_and_numbers():
    english, korean = TEXTS.values()
    assert typed(korean) == LINES
    for pattern in (r"\d+\.\d %", r"\d\d %", r"^\| `\w+\.png`", r"--[a-z][\w-]+"):
        found = [re.findall(pattern, text, flags=re.MULTILINE) for text in (english, korean)]
        assert sorted(found[0]) == sorted(found[1]), pattern


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
    (table,) = re.findall(r"\| to \.\.\. .*?\n\n", TEXTS["tutorial.md"], flags=re.DOTALL)
    own = set(re.findall(r"--[a-z][\w-]*", table)) - {"--num-processes", "--logdir"}
    assert len(own) > 4
    assert {option for option in own if not re.search(rf"{option}\b", shown)} == set()


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)]+)\)", TEXTS[name])
    assert len(links) > 5
    assert [link for link in links if not (FOLDER / link).is_file()] == []


def test_pages_lead_to_each_other():
    for name in NAMES:
        assert f"docs/reid/{name}" in README
        assert all(f"]({other})" in TEXTS[name] for other in NAMES if other != name)


def test_market_is_trained_as_on_the_page_of_the_example():
    (command,) = [line for line in LINES if "--pretrained" in line]
    assert command in README


def test_every_picture_and_data_set_is_explained():
    text = TEXTS["tutorial.md"]
    assert set(re.findall(r"^\| `(\w+)\.png`", text, flags=re.MULTILINE)) == set(PICTURES)
    (line,) = [line for line in text.splitlines() if line.startswith("Other data sets are")]
    assert set(re.findall(r"`(\w+)`", line)) | {"market1501"} == set(KINDS)


def test_scores_of_the_demo_are_those_of_the_page():
    for score in re.findall(r"\d+\.\d(?= (?:%|and))", TEXTS["tutorial.md"]):
        assert score in README, score
