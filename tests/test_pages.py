"""Every Python block of the pages written by hand runs as a file of its own, and prints what follows it."""

import importlib.util
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

from posenc import registry

DOCS = Path(__file__).parents[1] / "docs"
TOP = "index start quickstart models sizes limits security compatibility architecture".split()
PAGES = [
    *(DOCS / f"{name}.md" for name in TOP),
    *sorted(DOCS.glob("concepts/*.md")),
    *sorted(DOCS.glob("recipes/*.md")),
]
# A block of Python, and the text right after it: what it prints.
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```(?:\n+```text\n(?P<output>.*?)^```)?", re.DOTALL | re.MULTILINE
)


def blocks():
    for page in PAGES:
        for at, block in enumerate(BLOCK.finditer(page.read_text("utf-8"))):
            name = f"{page.relative_to(DOCS).with_suffix('')}-{at}"
            slow = [pytest.mark.slow] if re.search(r"export|Popen|check_encoding", block[0]) else []
            yield pytest.param(block["code"], block["output"], id=name, marks=slow)


@pytest.mark.parametrize(("code", "output"), list(blocks()))
def test_a_block_runs_and_prints_what_the_page_says(code, output, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    path = tmp_path / "page_block.py"  # a file: the source of classes can be read
    path.write_text(code, "utf-8")
    spec = importlib.util.spec_from_file_location("page_block", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "page_block", module)
    torch.manual_seed(0)
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec.loader.exec_module(module)
    if output is not None:
        assert capsys.readouterr().out.strip() == output.strip()


def test_every_page_is_there_and_has_a_title():
    assert len(PAGES) == len(TOP) + 6 + 10
    for page in PAGES:
        assert page.read_text("utf-8").startswith("# ")
