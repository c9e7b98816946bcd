"""What an experiment in pieces has finished: its numbers, then a record in each line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One training."""

    encoding: str  # a name of the contenders
    pool: str  # CLS or mean
    seed: int


@dataclass(frozen=True)
class Kept:
    """A file to which a line is added for each finished training; a line cut short does not count.

    Attributes:
        path: of the file.
        numbers: of the experiment, which all trainings in it share.
    """

    path: Path
    numbers: dict[str, Any]

    def read(self) -> dict[Job, dict[str, Any]]:
        """The records; begins the file if there is none.

        Raises:
            ValueError: it was another experiment.
        """
        head = json.dumps(self.numbers)
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(head + "\n")
        *whole, rest = self.path.read_text().split("\n")
        if rest:  # a kill while it was written
            self.path.write_text("".join(f"{line}\n" for line in whole))
        if not whole or whole[0] != head:
            raise ValueError(
                f"{self.path} is left from an experiment with other numbers; remove it, or use "
                "another folder"
            )
        records = [json.loads(line) for line in whole[1:]]
        return {Job(*(one[key] for key in Job._fields)): one for one in records}

    def add(self, record: dict[str, Any]) -> None:
        """A finished training."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
