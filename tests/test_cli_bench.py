"""`posenc bench` is the benchmark of the repository, with the command's errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posenc.bench import attention, timing
from posenc.bench.cases import SHAPES, Shape
from posenc.cli import main

TINY = ["--encodings", "swin", "--shapes", "tiny", "--pairs", "3"]


@pytest.fixture(autouse=True)
def _tiny(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SHAPES, "tiny", Shape(2, 2, 16, 2, 3))


def test_it_measures_and_writes(capsys, tmp_path):
    arguments = ["bench", *TINY, "--json", "out.json", "--plot", "out.png"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "| `swin` | auto (" in out
    report = json.loads(Path("out.json").read_text())
    assert report["command"] == f"posenc {' '.join(arguments)}"
    assert [row["case"] for row in report["ratios_to_plain_sdpa"]] == [
        "swin",
        "peer: timm RelPosBias",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.png"}


def test_the_script_of_the_repository_is_the_same(capsys):
    attention.main([*TINY, "--json", "out.json"])
    command = json.loads(Path("out.json").read_text())["command"]
    assert command == f"python benchmarks/bench_attention.py {' '.join(TINY)} --json out.json"
    script = Path(__file__).parents[1] / "benchmarks" / "bench_attention.py"
    assert "from posenc.bench.attention import main" in script.read_text()


def test_without_tqdm_and_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", *TINY]) == 0
    out, err = capsys.readouterr()
    assert "| `swin` | auto (" in out
    assert err == ""
    assert main(["bench", *TINY, "--plot", "out.png"]) == 1
    said = 'posenc: bench --plot draws with matplotlib: pip install "posenc[cli]"\n'
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encodings", "irp"], "posenc bench: argument --encodings: unknown encoding 'irp'"),
        (["--device", "tpux"], "posenc bench: argument --device: Expected one of cpu, cuda"),
        (["--shapes", "small"], "posenc bench: argument --shapes: invalid choice: 'small'"),
        ([*TINY, "--json", "no/out.json"], "posenc: cannot write no/out.json: No such file"),
        ([*TINY, "--irpe-repo", "no"], "posenc: no irpe.py in no or its iRPE"),
    ],
)
def test_what_goes_wrong_is_one_line(capsys, tmp_path, arguments, message):
    try:
        code = main(["bench", *arguments])
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_commit_is_not_that_of_a_repository_around(monkeypatch, tmp_path):
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(timing, "__file__", str(tmp_path / "timing.py"))
    assert timing.commit() == "unknown"
