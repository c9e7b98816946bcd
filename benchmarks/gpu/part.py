"""A part of the run: its time, and its results, which are written after each row."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Row = dict[str, Any]


class Part:
    """One JSON file: what it depends on, its rows, and what there was no time for.

    Args:
        name: of the part, and of the file.
        folder: for results.
        until: when its time is over.
        dry: whether this is a rehearsal on the CPU, with tiny sizes.
        head: what all results depend on.
        options: of the command that a part may need.
    """

    def __init__(
        self, name: str, folder: Path, until: float, dry: bool, head: Row, **options: Any
    ) -> None:
        self.name, self.folder, self.until, self.dry = name, folder, until, dry
        self.options = options
        self.report: Row = {"part": name, **head, "status": "running", "rows": [], "skipped": []}

    @property
    def rows(self) -> list[Row]:
        """So far."""
        return self.report["rows"]

    @property
    def seconds_left(self) -> float:
        """Of its time."""
        return max(0.0, self.until - time.time())

    def each(self, cells: Iterable[T], name: Callable[[T], str] = str) -> Iterator[T]:
        """The cells, as long as there is time; the names of the others are noted."""
        cells = list(cells)
        for place, cell in enumerate(cells):
            if time.time() >= self.until:
                self.skip(map(name, cells[place:]))
                return
            yield cell

    def add(self, row: Row) -> None:
        """A result, written at once."""
        self.rows.append(row)
        self.write()

    def skip(self, names: Iterable[str]) -> None:
        """Notes what there was no time for."""
        self.report["skipped"].extend(names)
        self.write()

    def end(self) -> None:
        """All is done, but for what was skipped."""
        self.write(status="cut" if self.report["skipped"] else "complete")

    def write(self, **fields: Any) -> None:
        """With these fields as well."""
        self.report.update(fields)
        write_json(self.folder / f"{self.name}.json", self.report)

    def read(self, name: str) -> Row:
        """The report of another part; empty where there is none."""
        return read_json(self.folder / f"{name}.json")


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all, also when the process ends meanwhile."""
    new = path.with_name(f".{path.name}")
    new.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(new, path)


def read_json(path: Path) -> Row:
    """Empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def amend(path: Path, **fields: Any) -> Row:
    """A report with other fields."""
    report = read_json(path) | fields
    write_json(path, report)
    return report
