"""Where the source of a documented name is, in the repository."""

from __future__ import annotations

import functools
import importlib
import inspect
from pathlib import Path

from repository_files import ROOT, repository


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """What `sphinx.ext.linkcode` asks for: an address, or None."""
    address = repository((ROOT / "pyproject.toml").read_text("utf-8"))
    if domain != "py" or address is None:
        return None
    found = importlib.import_module(info["module"])
    try:
        found = functools.reduce(getattr, info["fullname"].split("."), found)
        lines, start = inspect.getsourcelines(inspect.unwrap(getattr(found, "fget", found)))
    except (AttributeError, TypeError):  # a field, or a constant
        return None
    path = Path(inspect.getsourcefile(inspect.unwrap(getattr(found, "fget", found))) or "")
    where = path.resolve().relative_to(ROOT).as_posix()
    return f"{address}/blob/main/{where}#L{start}-L{start + len(lines) - 1}"
