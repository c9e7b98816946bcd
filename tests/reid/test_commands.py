"""What all commands share: help for every option, errors in one line, the end by Ctrl-C."""

import argparse
import runpy
import sys
from pathlib import Path

import options
import pytest
from data.batches import UnreadableImageError
from torch._utils import ExceptionWrapper
from training import run as training
from trainings import SCRIPT

EXAMPLE = Path(SCRIPT).parent
SCRIPTS = ("train", "evaluate", "demo", "experiment", "pictures", "floors", "generate")


def run_script(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    runpy.run_path(str(EXAMPLE / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_has_help(name, monkeypatch):
    parsers = []

    def caught(parser, words=None):
        parsers.append(parser)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", caught)
    with pytest.raises(SystemExit, match="0"):
        run_script(monkeypatch, name)
    (parser,) = parsers
    assert [action.dest for action in parser._actions if not action.help] == []
    assert len(parser._actions) > 2
    assert parser.format_help()


def test_every_command_is_there():
    written = {p.stem for p in EXAMPLE.glob("*.py") if "__main__" in p.read_text()}
    assert written == set(SCRIPTS)


@pytest.mark.parametrize(
    ("name", "words", "code", "message"),
    [
        ("train", ["out", "--data", "nowhere"], 1, "nowhere, which is no folder"),
        ("train", ["out", "--data", "x", "--smoothing", "2"], 1, "smoothing must be less than 1"),
        ("train", ["out", "--data", "x", "--start", "nowhere"], 1, "no training in nowhere"),
        ("train", ["out", "--data", "x", "--epochs", "many"], 2, "invalid int value: 'many'"),
        ("train", ["out"], 2, "the following arguments are required: --data"),
        ("evaluate", ["nowhere", "--data", "x"], 1, "expected in x, which is no folder"),
        ("pictures", ["nowhere", "--data", "x"], 1, "expected in x, which is no folder"),
        ("floors", ["x"], 1, "expected in x, which is no folder"),
        ("generate", ["out", "--cameras", "1"], 1, "cameras must be 2 to 9, got 1"),
        ("generate", ["out", "--junk", "-1"], 1, "junk must be at least 0, got -1"),
        ("demo", ["--test-people", "3"], 1, "test_people must be a multiple of 4, got 3"),
    ],
)
def test_errors_are_one_line(name, words, code, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^{code}$"):
        run_script(monkeypatch, name, *words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}.py: error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_mistakes_of_the_code_keep_their_traceback(monkeypatch):
    def main():
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        options.command(main)


def test_an_error_in_a_process_that_loads_photos(monkeypatch, capsys):
    """As torch passes it on, with a traceback in its words."""

    def main():
        try:
            raise UnreadableImageError("photo.jpg cannot be read (empty); remove it")
        except UnreadableImageError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit, match=r"^1$"):
        options.command(main)
    said = capsys.readouterr().err
    assert said == "train.py: error: photo.jpg cannot be read (empty); remove it\n"


def test_an_interruption_says_how_to_go_on(folder, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Run, "step", interrupted)
    words = [tmp_path / "out", "--data", folder, "--people", 4, "--tracker", "none"]
    with pytest.raises(SystemExit, match=r"^130$"):
        run_script(monkeypatch, "train", *words)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: interrupted; the same command goes on from the last checkp")
