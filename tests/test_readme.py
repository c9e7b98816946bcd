"""Every Python block of the README runs, and the first one comes early."""

import re
import warnings
from pathlib import Path

import pytest

from posenc import registry

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_runnable_code_by_line_25():
    lines = README.read_text().splitlines()
    assert lines.index("```python") < 25


def test_own_encoding_is_about_30_lines():
    block = next(b for b in BLOCKS if "class Distance" in b)
    assert len([line for line in block.splitlines() if line.strip()]) <= 30
