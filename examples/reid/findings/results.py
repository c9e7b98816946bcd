"""What an experiment found: mAP of each training, and how two encodings differ over their seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.stats import false_discovery_control, t

BASE = "learned"
LEVEL = 0.05
Scores = dict[int, float]  # seed -> mAP in percent


@dataclass(frozen=True)
class Difference:
    """Of one encoding from another, in each seed that both have: at least two."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """In points."""
        return statistics.mean(self.values)

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return statistics.stdev(self.values) / math.sqrt(len(self.values))

    @property
    def p(self) -> float:
        """Of a paired t-test."""
        if not self.error:
            return float(self.mean == 0)
        return float(2 * t.sf(abs(self.mean) / self.error, len(self.values) - 1))

    @property
    def interval(self) -> tuple[float, float]:
        """In which the mean of all seeds is with confidence 1 - `LEVEL`, by the same test."""
        half = float(t.ppf(1 - LEVEL / 2, len(self.values) - 1)) * self.error
        return self.mean - half, self.mean + half


class Verdict(NamedTuple):
    """An encoding against `BASE`: its gain in points, and the adjusted p of the paired test."""

    gain: float
    p: float

    @property
    def kind(self) -> str:
        """In words."""
        if self.p >= LEVEL:
            return "no clear difference"
        return "better" if self.gain > 0 else "worse"


@dataclass(frozen=True)
class Results:
    """Scores by encoding, readout and test; encodings need not have the same seeds."""

    scores: dict[tuple[str, str, str], Scores]

    @classmethod
    def of(cls, records: list[dict[str, Any]]) -> Results:
        """Those of experiment.json, in their order."""
        scores: dict[tuple[str, str, str], Scores] = {}
        for record in records:
            for test, found in record["tests"].items():
                key = record["encoding"], record["pool"], test
                scores.setdefault(key, {})[record["seed"]] = 100 * found["mAP"]
        return cls(scores)

    @property
    def encodings(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(encoding for encoding, _, _ in self.scores))

    @property
    def pools(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(pool for _, pool, _ in self.scores))

    @property
    def tests(self) -> list[str]:
        """In order: as trained is the first."""
        return list(dict.fromkeys(test for _, _, test in self.scores))

    def of_test(self, encoding: str, pool: str, test: str) -> list[float]:
        """Of each seed; none where nothing was trained."""
        return list(self.scores.get((encoding, pool, test), {}).values())

    def seeds(self, *encodings: str, pool: str) -> int:
        """How many all of these have."""
        having = [self.scores.get((one, pool, self.tests[0]), {}) for one in encodings]
        return len(set(having[0]).intersection(*having[1:]))

    @property
    def seed_counts(self) -> list[int]:
        """All that there are, in order: one number where everything has as many seeds."""
        return sorted({len(scores) for scores in self.scores.values()})

    def difference(self, encoding: str, base: str, pool: str, test: str) -> Difference | None:
        """None where fewer than two seeds have both."""
        ours, theirs = (self.scores.get((one, pool, test), {}) for one in (encoding, base))
        values = tuple(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))
        return Difference(values) if len(values) > 1 else None

    def against_base(self, pool: str, test: str) -> dict[str, Verdict]:
        """Each encoding but `BASE` that shares seeds with it; p is adjusted for their number."""
        found = {
            one: difference
            for one in self.encodings
            if one != BASE and (difference := self.difference(one, BASE, pool, test))
        }
        raw = [difference.p for difference in found.values()]
        adjusted = false_discovery_control(raw).tolist() if raw else []
        pairs = zip(found.items(), adjusted, strict=True)
        return {one: Verdict(difference.mean, p) for (one, difference), p in pairs}
