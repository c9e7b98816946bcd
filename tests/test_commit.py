"""Which code a result is of."""

import subprocess

import pytest

from posenc.bench import timing


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One with code and a result, both committed; `timing` lies in it."""
    code = tmp_path / "pkg" / "timing.py"
    code.parent.mkdir()
    code.write_text("one = 1\n")
    (tmp_path / "results.json").write_text("{}\n")
    for command in (
        *(["init", "-q"], ["add", "."]),
        ["-c", "user.name=n", "-c", "user.email=e@example.org", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(timing, "__file__", str(code))
    return tmp_path


def test_stored_results_do_not_make_it_dirty(repository):
    clean = timing.commit()
    assert len(clean) == 12
    (repository / "results.json").write_text('{"more": 1}\n')
    assert timing.commit() == clean


def test_changed_code_does(repository):
    clean = timing.commit()
    (repository / "other.py").write_text("new = 1\n")
    subprocess.run(["git", "add", "."], cwd=repository, check=True)
    assert timing.commit() == f"{clean}-dirty"


def test_elsewhere_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "__file__", str(tmp_path / "timing.py"))
    assert timing.commit() == "unknown"
