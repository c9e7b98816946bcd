"""What stands beside the code in a release: its forms are right and agree with each other."""

import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tables
import yaml

import posenc

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
FORMS = {
    "CITATION.cff": "citation-file-format",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/encoding.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
}


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.slow
@pytest.mark.parametrize("schema", sorted(set(FORMS.values())))
def test_forms_are_as_their_readers_ask(schema):
    files = [ROOT / name for name, form in FORMS.items() if form == schema]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    run = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_form_is_checked():
    found = {*ROOT.glob("*.cff"), *ROOT.glob(".github/*/*.yml")}
    assert {str(path.relative_to(ROOT)) for path in found} == set(FORMS)


def test_one_version():
    assert read("CITATION.cff")["version"] == posenc.__version__
    assert f"`posenc.__version__` says {posenc.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r'^dynamic = \["version"\]$', PROJECT, re.MULTILINE)


def test_one_address():
    assert read("CITATION.cff")["repository-code"] == tables.ADDRESS
    addresses = re.search(r"^\[project.urls\].*?\n\n", PROJECT, re.MULTILINE | re.DOTALL)[0]
    assert addresses.count("https://") == addresses.count(tables.ADDRESS) == 4


def test_metadata_of_the_package():
    metadata = importlib.metadata.metadata("posenc")
    assert metadata["Author"] == read("CITATION.cff")["authors"][0]["name"]
    assert metadata["License-Expression"] == read("CITATION.cff")["license"] == "Apache-2.0"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert (Path(posenc.__file__).parent / "py.typed").is_file()


def test_the_workflow_runs_what_developers_run():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    words = [word for line in commands if line.startswith("make ") for word in line.split()[1:]]
    made = [word for word in words if not word.startswith("-")]
    assert (
        {"lint", "types", "contracts", "test", "dist", "smoke-lowest"} <= set(made) <= set(targets)
    )


def test_hooks_are_the_commands_of_make():
    """And need nothing but what is installed."""
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text()
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        tool = shlex.split(hook["entry"])[0].removeprefix(".venv/bin/")
        assert f"\t$(BIN)/{tool}" in makefile


CONTRIBUTING = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())


def added_lines(commit):
    """File -> lines that the commit added."""
    command = ["git", "-C", ROOT, "show", "--numstat", "--format=", commit]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip(f"the history here does not reach to {commit}")
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return {name: int(added) for added, _, name in rows}


@pytest.mark.parametrize("commit", re.findall(r"\((\w{7})\)", CONTRIBUTING))
def test_checklists_quote_sizes_as_they_were(commit):
    """From the name of the commit to the next one, or to the end of the sentence."""
    text = CONTRIBUTING.partition(f"({commit})")[2]
    text = re.split(r"\(\w{7}\)|\. ?(?=- \[|[A-Z])", text)[0].replace(",", "")
    lines = added_lines(commit)
    tests = sum(added for name, added in lines.items() if name.startswith("tests/"))
    quoted = set(map(int, re.findall(r"\d+", text)))
    assert quoted <= {len(lines), sum(lines.values()), tests}
    assert {len(lines), sum(lines.values())} <= quoted


def test_each_checklist_has_a_size():
    sections = (ROOT / "CONTRIBUTING.md").read_text().split("\n## ")[2:]
    assert [section.partition("\n")[0] for section in sections] == [
        "An encoding",
        "A term",
        "A backend",
        "A family of models",
    ]
    assert all("\nMeasured: " in section and "\n- [ ] " in section for section in sections)
