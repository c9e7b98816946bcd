"""What `make mutants` rests on: which changes count, and which tests run them."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutants():
    folder = str(ROOT / ".ci")
    sys.path.insert(0, folder)
    yield importlib.import_module("mutants")
    sys.path.remove(folder)
    for name in ("mutants", "mutations"):
        del sys.modules[name]


CODE = "from __future__ import annotations\ndef f(x: int | None) -> int:\n    return x or 1\n"


@pytest.mark.parametrize(
    ("before", "after", "same"), [("int | None", "int & None", True), ("x or 1", "x or 2", False)]
)
def test_annotations_do_not_run(mutants, before, after, same):
    changed = CODE.replace(before, after)
    what_runs = sys.modules["mutations"].what_runs
    assert changed != CODE
    assert (what_runs(changed) == what_runs(CODE)) is same


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("tests/a/test_b.py::test_c", ("tests.a.test_b", "test_c")),
        ("tests/test_b.py::TestD::test_c[1-x]", ("tests.test_b.TestD", "test_c[1-x]")),
        ("tests/test_b.py::test_c[a::b[0]]", ("tests.test_b", "test_c[a::b[0]]")),
    ],
)
def test_reports_name_a_test_in_parts(mutants, test, name):
    assert mutants._junit_name(test) == name


def test_the_quickest_tests_come_first_and_rounds_have_limits(mutants):
    seconds = {"slow": 150.0, "quick": 1.0, "other": 15.0, "elsewhere": 0.1, "far": 70.0}
    lines = {"posenc/a.py": {3: ["slow", "other", "quick"], 4: ["far", "quick", "elsewhere"]}}
    measured = mutants.Measured(lines, seconds)
    mutant = mutants.Mutant("posenc/a.py", 3, "", "before", "after", "")
    rounds = [tests for tests, _ in measured.rounds(mutant)]
    assert rounds == [["quick", "other"], ["slow"], ["elsewhere"]]
    assert measured.tests_of(mutants.Mutant("posenc/a.py", 1, "", "", "", ""))[0] == "elsewhere"


def test_a_module_is_imported_with_other_code(mutants, monkeypatch):
    path = ROOT / "posenc" / "layout.py"
    other = mutants.Changed(path, "HERE = 'other'\n")
    assert other.find_spec("posenc.pairs", None) is None
    module = importlib.util.module_from_spec(other.find_spec("posenc.layout", None))
    module.__spec__.loader.exec_module(module)
    assert (module.HERE, module.__file__) == ("other", str(path))


def test_what_was_found_with_other_tests_is_refused(mutants, tmp_path):
    path = tmp_path / "mutants.json"
    path.write_text('{"digest": "before", "mutants": [{"mutant": "a"}]}')
    assert mutants.read(path, "before") == {"a": {"mutant": "a"}}
    assert mutants.read(tmp_path / "none.json", "before") == {}
    with pytest.raises(SystemExit, match="found with other code or tests"):
        mutants.read(path, "after")


@pytest.mark.parametrize(("code", "state"), [(0, "survived"), (1, "killed"), (5, "doubtful")])
def test_a_process_without_tests_has_noticed_nothing(mutants, monkeypatch, code, state):
    monkeypatch.setattr(mutants, "_run_tests", lambda mutant, tests: code)
    run = mutants.Run(None, iter([(["a test"], 1.0)]), 0.0)
    assert run.go_on()
    while run.poll() is None:
        pass
    assert run.state == state
