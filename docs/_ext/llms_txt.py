"""Writes llms.txt: title, address and first sentence of each page (https://llmstxt.org)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes


def setup(app: Any) -> dict[str, bool]:
    """Writes it when all pages are written."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        text = "\n".join(lines(app)) + "\n"
        Path(app.outdir, "llms.txt").write_text(text, "utf-8")


def lines(app: Any) -> Iterator[str]:
    """A section for each page that the first one names, with all pages below it."""
    root = app.config.root_doc
    yield f"# {app.config.project}\n"
    yield f"> {_first_sentence(app.env.get_doctree(root))}"
    for top in app.env.toctree_includes[root]:
        yield f"\n## {app.env.titles[top].astext()}\n"
        for page in _with_pages_below(top, app.env.toctree_includes):
            yield _line(app, page)


def _with_pages_below(page: str, includes: dict[str, list[str]]) -> Iterator[str]:
    yield page
    for below in includes.get(page, ()):
        yield from _with_pages_below(below, includes)


def _line(app: Any, page: str) -> str:
    title = app.env.titles[page].astext()
    address = f"{app.config.html_baseurl}{app.builder.get_target_uri(page)}"
    sentence = _first_sentence(app.env.get_doctree(page))
    return f"- [{title}]({address})" + (f": {sentence}" if sentence else "")


def _first_sentence(document: nodes.document) -> str:
    """Of the text or of the first docstring; nothing where there is none."""
    for paragraph in document.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section | addnodes.desc_content):
            return re.split(r"(?<=\S[.?!])\s", " ".join(paragraph.astext().split()))[0]
    return ""
