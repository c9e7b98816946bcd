"""The gallery shows every function that draws; `make docs` runs its scripts."""

import re
from pathlib import Path

from posenc.analysis import plot

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = {path.name: path.read_text() for path in (DOCS / "gallery").glob("*.py")}


def test_every_function_is_shown():
    called = set(re.findall(r"plot\.(plot_\w+)\(", "".join(SCRIPTS.values())))
    assert called == set(plot.__all__)


def test_the_page_of_pictures_names_every_script_and_function():
    page = (DOCS / "analysis.md").read_text()
    assert set(re.findall(r"\]\(gallery/(plot_\w+\.py)\)", page)) == set(SCRIPTS)
    rows = re.findall(r"\| `(\w+)` \| \[(\w+\.py)\]", page)
    assert {function for function, _ in rows} == {*plot.__all__, "split_logits"}
    assert all(f"{function}(" in SCRIPTS[script] for function, script in rows)
