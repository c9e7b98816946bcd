"""What `make mutants` left in docs/tests, as a table with reasons."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent / "tests"
AROUND = 24  # characters shown beside a change


def report() -> dict[str, Any]:
    """Of the sample that the page shows."""
    return json.loads((TESTS / "mutants.json").read_text())


def reasons() -> dict[str, str]:
    """Of each change that no test noticed, why none has to."""
    return json.loads((TESTS / "reasons.json").read_text())


def unnoticed() -> list[dict[str, Any]]:
    """The changes that were not killed."""
    return [row for row in report()["mutants"] if row["state"] != "killed"]


def mutants_table() -> str:
    """How many were noticed, and a row for each other one."""
    found, why = report(), reasons()
    killed, sample = found["counts"]["killed"], found["sample"]
    first = (
        f"Of {sample} changes at {found['commit']} (seed {found['seed']}) tests noticed {killed}, "
        f"{100 * killed / sample:.1f} %. The others:"
    )
    rows = [["change", "why"], ["---"] * 2]
    for row in unnoticed():
        path, _, change = row["mutant"].partition(": ")
        before, after = where_they_differ(*change.split(" -> ", 1))
        becomes = f"{code(before)} becomes {code(after) if after.strip() else 'nothing'}"
        rows.append([f"{path.removeprefix('posenc/')}: {becomes}", why[row["mutant"]]])
    return "\n".join([first, "", *(f"| {' | '.join(row)} |" for row in rows)])


def where_they_differ(before: str, after: str) -> tuple[str, str]:
    """The places, with some of what both have around them."""
    same = shared(before, after)
    same_end = shared(before[same:][::-1], after[same:][::-1])
    start = max(0, same - AROUND)
    start = 0 if start < AROUND / 2 else start
    places = []
    for text in (before, after):
        end = len(text) - same_end + AROUND
        middle = text[start : end if end < len(text) - AROUND / 2 else len(text)]
        places.append(f"{'...' * bool(start)}{middle}{'...' * (start + len(middle) < len(text))}")
    return places[0], places[1]


def shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = zip(one, other, strict=False)
    return len([*itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])


def code(text: str) -> str:
    """As code in a cell of a table."""
    return f"`` {text.strip().replace('|', chr(92) + '|')} ``"
