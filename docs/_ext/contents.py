"""Gives pages their tables of contents, from the file of the same name in `_toc`.

The pages are read on GitHub, too, where a `toctree` is a block of code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Adds them when a page is read."""
    app.connect("source-read", _append)
    return {"parallel_read_safe": True}


def _append(app: Any, page: str, source: list[str]) -> None:
    contents = Path(app.srcdir, "_toc", f"{page}.md")
    if contents.exists():
        app.env.note_dependency(contents)
        source[0] += "\n" + contents.read_text("utf-8")
