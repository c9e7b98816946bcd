"""The Python blocks of each page run, in their order, and print what the page says they print."""

import contextlib
import doctest
import io
import re
import sys
import types
from pathlib import Path

import pytest

from posenc import registry

DOCS = Path(__file__).parents[2] / "docs"
MADE = ("_build", "auto_gallery", "encodings", "notebooks")  # by `make docs`, from other files
LONG = {  # over three seconds: other processes, exports, every check of an encoding, transformers
    *("quickstart.md", "recipes/export.md", "recipes/hugging_face.md"),
    *("recipes/my_own_encoding.md", "recipes/several_gpus.md"),
}
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)


def pages():
    """With code in them."""
    names = {page.relative_to(DOCS).as_posix(): page for page in sorted(DOCS.rglob("*.md"))}
    for name, page in names.items():
        if "```python" in page.read_text() and name.partition("/")[0] not in MADE:
            marks = [pytest.mark.examples] if name in LONG else []
            yield pytest.param(page, id=name, marks=marks)


@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
@pytest.mark.parametrize("page", list(pages()))
def test_blocks_run_and_print_what_stands_below_them(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    module = types.ModuleType("page")  # a module, or its classes could not be pickled
    monkeypatch.setitem(sys.modules, "page", module)
    text = page.read_text()
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python\n")
    for block in blocks:
        printed = run(block[1], page, text.count("\n", 0, block.start(1)), module)
        if block[2] is not None:
            assert is_shown(block[2], printed), f"{page.name} shows\n{block[2]}but\n{printed}"


def run(code, page, line, module):
    """What it prints; errors name the line of the page."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
    return out.getvalue()


def is_shown(expected, printed):
    """Where a page has "..." something is left out."""
    return doctest.OutputChecker().check_output(expected, printed, doctest.ELLIPSIS)


def test_another_output_is_noticed():
    assert is_shown("loss 0.5...\n", "loss 0.53\n")
    assert not is_shown("loss 0.5\n", "loss 0.53\n")
