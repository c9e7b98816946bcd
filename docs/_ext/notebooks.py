"""Makes a page of each notebook in docs/notebooks: text and code, without what it prints."""

from __future__ import annotations

import json
from typing import Any

from repository_files import DOCS, ROOT, repository

FOLDER = DOCS / "notebooks"
NOTE = "*This page is a notebook, [{name}]({address}). The tests run it from top to bottom.*"


def setup(app: Any) -> dict[str, bool]:
    """Writes the pages before Sphinx looks for any."""
    app.connect("builder-inited", _make)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _make(app: Any) -> None:
    source = repository((ROOT / "pyproject.toml").read_text("utf-8"))
    for path in sorted(FOLDER.glob("*.ipynb")):
        address = f"{source}/blob/main/docs/notebooks/{path.name}"
        page = path.with_suffix(".md")
        text = as_page(json.loads(path.read_text("utf-8")), path.name, address)
        if not page.exists() or page.read_text("utf-8") != text:  # else Sphinx reads it anew
            page.write_text(text, "utf-8")


def as_page(notebook: dict[str, Any], name: str, address: str) -> str:
    """In Markdown: the note stands below the title, which is in the first cell."""
    parts = [_part(cell) for cell in notebook["cells"]]
    title, _, rest = parts[0].partition("\n")
    note = NOTE.format(name=name, address=address)
    return "\n\n".join([title, note, rest.strip(), *parts[1:]]) + "\n"


def _part(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        return text
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    return f"```python\n{code}\n```"
