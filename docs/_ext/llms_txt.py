"""Writes llms.txt: title, first sentence and address of each page (https://llmstxt.org)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes

LEFT_OUT = re.compile(r"api/generated/|auto_gallery/.*(backreferences|index)|contents$")
OTHER = "Overview"


def setup(app: Any) -> dict[str, bool]:
    """Writes it when all pages are written."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        text = f"# {app.config.project}\n\n" + "\n".join(_lines(app))
        Path(app.outdir, "llms.txt").write_text(text, "utf-8")


def _lines(app: Any) -> Iterator[str]:
    """A section for each folder."""
    yield f"> {_first_sentence(app.env.get_doctree(app.config.root_doc))}\n"
    pages = sorted(app.env.found_docs, key=lambda page: ("/" in page, page))
    section = None
    for page in (page for page in pages if not LEFT_OUT.search(page)):
        if section != (section := page.rpartition("/")[0]):
            yield f"\n## {section}\n"
        elif section == "" and page == pages[0]:
            yield f"## {OTHER}\n"
        yield _line(app, page)


def _line(app: Any, page: str) -> str:
    title = app.env.titles[page].astext()
    address = f"{app.config.html_baseurl}{app.builder.get_target_uri(page)}"
    sentence = _first_sentence(app.env.get_doctree(page))
    return f"- [{title}]({address})" + (f": {sentence}" if sentence else "")


def _first_sentence(document: nodes.document) -> str:
    """Of the text; nothing where there is none."""
    for paragraph in document.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            text = " ".join(paragraph.astext().split())
            return re.split(r"(?<=[.:])\s", text)[0].rstrip(":")
    return ""
