"""What was found so far: one file, written again after every training."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Job(NamedTuple):
    """One thing to find out."""

    part: str  # "cells", "rate", "alone", "beside", "few" or "cost"
    encoding: str
    readout: str = "mean"
    seed: int = 0
    share: float = 1.0  # of the training images
    rate: float = 0.0  # the one that a "rate" tries


Record = dict[str, Any]
Records = dict[Job, Record]


@dataclass(frozen=True)
class Results:
    """A file of records, for a tier and a source of images that all of them share.

    Attributes:
        path: of the file.
        tier: its numbers.
        data: what there is to train on.
    """

    path: Path
    tier: dict[str, Any]
    data: dict[str, Any]

    def read(self) -> Records:
        """The records; none where there is no file.

        Raises:
            ValueError: they are of another tier, of other numbers of it, or of other images.
        """
        if not self.path.is_file():
            return {}
        kept = json.loads(self.path.read_text())
        for name, mine in (("tier", self.tier), ("data", self.data)):
            if kept.get(name) != json.loads(json.dumps(mine)):
                raise ValueError(
                    f"{self.path} is left from a comparison with another {name}: "
                    f"{kept.get(name)}, and now {mine}; remove it, or use another folder"
                )
        return {Job(*record.pop("job")): record for record in kept["records"]}

    def write(self, records: Records, **more: Any) -> None:
        """All of them, and what else the file shall tell; a kill leaves the old file."""
        rows = [{"job": list(job), **record} for job, record in sorted(records.items())]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".part")
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        head = "".join(f' "{name}": {json.dumps(value)},\n' for name, value in more.items())
        head += f' "tier": {json.dumps(self.tier)},\n "data": {json.dumps(self.data)},\n'
        fresh.write_text(f'{{\n{head} "records": [\n{lines}\n ]\n}}\n')
        os.replace(fresh, self.path)
