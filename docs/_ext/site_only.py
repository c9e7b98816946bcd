"""Appends to pages what only the site has, from the file of the same name in `_site`.

The pages are read on GitHub, too, where a `toctree` is a block of code and a frame is nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def setup(app: Any) -> dict[str, bool]:
    """Adds it when a page is read."""
    app.connect("source-read", _append)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _append(app: Any, page: str, source: list[str]) -> None:
    more = Path(app.srcdir, "_site", f"{page}.md")
    if more.exists():
        app.env.note_dependency(more)
        source[0] += "\n" + more.read_text("utf-8")
