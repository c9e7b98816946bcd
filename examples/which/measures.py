"""From records to what they say: a value per encoding and seed, resampled to see how sure it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau, rankdata

from which.plan import share_right
from which.results import Job, Records

RESAMPLINGS = 4_000
INSIDE = (2.5, 97.5)  # percentiles
Counts = tuple[int, int]  # images classified correctly, images


@dataclass(frozen=True)
class Measure:
    """What one question is answered by: the mean accuracy over some tests.

    Attributes:
        name: of the table's column.
        part: of the jobs that are looked at.
        readouts: of them.
        conditions: of their tests.
        share: of the training images.
    """

    name: str
    part: str
    readouts: tuple[str, ...]
    conditions: tuple[str, ...]
    share: float = 1.0

    def counts(self, records: Records) -> dict[str, list[list[Counts]]]:
        """Encoding -> of each seed that has all the tests, their counts."""
        found: dict[str, list[list[Counts]]] = {}
        jobs = {job for job in records if job.part == self.part and job.share == self.share}
        for encoding in dict.fromkeys(job.encoding for job in sorted(jobs)):
            seeds = [
                self._of_seed(records, encoding, seed)
                for seed in sorted({job.seed for job in jobs if job.encoding == encoding})
            ]
            if whole := [counts for counts in seeds if counts is not None]:
                found[encoding] = whole
        return found

    def _of_seed(self, records: Records, encoding: str, seed: int) -> list[Counts] | None:
        counts = []
        for readout in self.readouts:
            record = records.get(Job(self.part, encoding, readout, seed, self.share))
            if record is None or not {*self.conditions} <= record["tests"].keys():
                return None
            counts += [tuple(record["tests"][name]) for name in self.conditions]
        return counts


BOTH = ("CLS", "mean")
MEASURES = {
    one.name: one
    for one in (
        Measure("CLS", "alone", ("CLS",), ("1x",)),
        Measure("mean", "alone", ("mean",), ("1x",)),
        Measure("1.5x to 3x", "alone", BOTH, ("1.5x", "2x", "3x")),
        Measure("4.57x", "alone", BOTH, ("4.57x",)),
        Measure("rectangles", "alone", BOTH, ("2:1", "1:2")),
        Measure("moved", "alone", BOTH, ("shifted", "cropped")),
        Measure("1/8 of the data", "few", ("mean",), ("1x",), share=1 / 8),
        Measure("beside a table", "beside", ("mean",), ("1x",)),
        Measure("three cells", "cells", ("mean",), ("cells",)),
    )
}


@dataclass(frozen=True)
class Standing:
    """Of one encoding in one measure, in percent.

    Attributes:
        mean: over seeds and tests.
        low: end of the 95 % interval.
        high: its other end.
        seeds: number of them.
        rank: 1 is the best.
        ranks: 95 % interval of the rank.
        behind: how far below the best, and the 95 % interval of that.
    """

    mean: float
    low: float
    high: float
    seeds: int
    rank: int
    ranks: tuple[int, int]
    behind: tuple[float, float, float]

    @property
    def may_be_best(self) -> bool:
        """The resamplings do not tell it from the best."""
        return self.behind[1] <= 0


def standings(records: Records, measure: Measure) -> dict[str, Standing]:
    """Encoding -> standing, the best first."""
    counts = measure.counts(records)
    if not counts:
        return {}
    drawn = np.stack([resample(seeds, key=name) for name, seeds in counts.items()])
    means = np.array([value(seeds) for seeds in counts.values()])
    best = int(means.argmax())
    ranks = [rankdata(-drawn, method=ties, axis=0) for ties in ("min", "max")]  # of equals: all
    found = {}
    for row, (name, seeds) in enumerate(counts.items()):
        low, high = np.percentile(drawn[row], INSIDE)
        behind = np.percentile(drawn[best] - drawn[row], INSIDE) if row != best else (0.0, 0.0)
        found[name] = Standing(
            mean=float(means[row]),
            low=float(low),
            high=float(high),
            seeds=len(seeds),
            rank=int((means > means[row]).sum()) + 1,
            ranks=tuple(
                int(np.percentile(one[row], end, method="nearest"))
                for one, end in zip(ranks, INSIDE, strict=True)
            ),
            behind=(float(means[best] - means[row]), float(behind[0]), float(behind[1])),
        )
    return dict(sorted(found.items(), key=lambda item: item[1].rank))


def value(seeds: list[list[Counts]]) -> float:
    """The mean over seeds and tests, in percent."""
    return 100 * float(np.mean([[share_right(one) for one in counts] for counts in seeds]))


def resample(seeds: list[list[Counts]], key: str) -> np.ndarray:
    """Means `[RESAMPLINGS]` in percent, as other seeds and other test images might have given them.

    Seeds are drawn again, their deviations enlarged by sqrt(n / (n - 1)), which a draw from n
    values lacks; and in each test so many images are right as a binomial law gives.
    """
    rng = np.random.default_rng(sorted(key.encode()))
    shares = np.array([[share_right(one) for one in counts] for counts in seeds])
    totals = np.array([[total for _, total in counts] for counts in seeds])
    number = len(shares)
    scale = np.sqrt(number / (number - 1)) if number > 1 else 1.0
    spread = np.clip(shares.mean(axis=0) + scale * (shares - shares.mean(axis=0)), 0, 1)
    places = rng.integers(number, size=(RESAMPLINGS, number))
    right = rng.binomial(totals[places], spread[places])
    return 100 * (right / totals[places]).mean(axis=(1, 2))


def difference(
    records: Records, first: tuple[Measure, str], second: tuple[Measure, str]
) -> tuple[float, float, float] | None:
    """Of two encodings, each in a measure: first less second, and its 95 % interval."""
    pair = []
    for measure, name in (first, second):
        counts = measure.counts(records)
        if name not in counts:
            return None
        pair.append(counts[name])
    drawn = resample(pair[0], f"{first[1]} first") - resample(pair[1], f"{second[1]} second")
    return value(pair[0]) - value(pair[1]), *map(float, np.percentile(drawn, INSIDE))


def agreement(
    records: Records, among: Callable[[str], bool] = lambda name: name != "none"
) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Kendall's tau-b of each two measures, its p, and the number of encodings that both have."""
    means = {
        name: {e: value(seeds) for e, seeds in measure.counts(records).items() if among(e)}
        for name, measure in MEASURES.items()
    }
    found = {}
    names = list(means)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            common = [e for e in means[one] if e in means[other]]
            if len(common) > 2:
                tau = kendalltau(*([means[name][e] for e in common] for name in (one, other)))
                found[one, other] = float(tau.statistic), float(tau.pvalue), len(common)
    return found
