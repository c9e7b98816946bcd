"""What there is to find out, in the order in which it is found out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from which.conditions import KINDS
from which.contenders import READOUTS, add_encoding
from which.results import Job, Records
from which.tiers import Tier
from which.training import build, parameters

PARTS = ("cells", "images", "size", "shift", "few", "beside", "cost")
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the training images, with as many passes
FEW = ("none", "learned", "peg", "swin", "rope", "alibi_2d", "irpe")  # none, and six
CLOSEST, MORE_SEEDS = 4, 2
TRIAL_SEED = 1_000  # of the trainings that choose a learning rate


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        tier: the sizes.
        encodings: contenders.
        seeds: trainings of each; the closest get two more.
        parts: of `PARTS`.
    """

    tier: Tier
    encodings: Sequence[str]
    seeds: int
    parts: Sequence[str]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Conditions that a trained model is tested on."""
        return tuple(kind for kind in KINDS if kind in self.parts)

    def stages(self, records: Records) -> Iterator[list[Job]]:
        """Jobs whose turn it is; later stages look at the records of the earlier ones."""
        if "cells" in self.parts:
            yield self._jobs("cells", self.encodings)
        if self.kinds or {"few", "beside"} & {*self.parts}:
            yield self.rate_trials()
        if self.kinds:
            yield self._jobs("alone", self.encodings, readouts=tuple(READOUTS))
        if "few" in self.parts:
            few = [name for name in FEW if name in self.encodings]
            yield self._jobs("few", few, shares=SHARES)
        if "beside" in self.parts:
            others = [name for name in self.encodings if name not in ("none", "learned")]
            yield self._jobs("beside", others)
        if self.kinds and self.seeds > 1:
            yield self.more_of_the_closest(records)
        if "cost" in self.parts:
            yield [Job("cost", name) for name in self.encodings]

    def _jobs(
        self,
        part: str,
        encodings: Sequence[str],
        readouts: Sequence[str] = ("mean",),
        shares: Sequence[float] = (1.0,),
    ) -> list[Job]:
        return [
            Job(part, name, readout, seed, share)
            for seed in range(self.seeds)
            for share in shares
            for readout in readouts
            for name in encodings
        ]

    def rate_trials(self) -> list[Job]:
        """One for each rate, where an encoding has parameters; the table is beside all others."""
        table = ["learned"] if "beside" in self.parts else []
        return [
            Job("rate", name, "mean", TRIAL_SEED, 1.0, rate)
            for name in dict.fromkeys([*self.encodings, *table])
            if learns(self.tier, name)
            for rate in self.tier.rates
        ]

    def more_of_the_closest(self, records: Records) -> list[Job]:
        """Two more seeds for the best of each readout."""
        more = range(self.seeds, self.seeds + MORE_SEEDS)
        return [
            Job("alone", name, readout, seed)
            for readout in READOUTS
            for name in self.closest(records, readout)
            for seed in more
        ]

    def closest(self, records: Records, readout: str) -> list[str]:
        """The best as trained, by the mean over the seeds that all have."""
        means = {
            name: statistics.mean(
                share_right(records[Job("alone", name, readout, seed)]["tests"]["1x"])
                for seed in range(self.seeds)
            )
            for name in self.encodings
            if all(Job("alone", name, readout, seed) in records for seed in range(self.seeds))
        }
        return sorted(means, key=lambda name: -means[name])[:CLOSEST]

    def is_done(self, job: Job, records: Records) -> bool:
        """Whether its record has all that is asked for."""
        if job not in records:
            return False
        return job.part != "alone" or {*self.kinds} <= {*records[job]["kinds"]}

    def kinds_of(self, job: Job, records: Records) -> tuple[str, ...]:
        """What a training shall be tested on: also that which its present record has."""
        kept = records.get(job, {}).get("kinds", ())
        return tuple(kind for kind in KINDS if kind in {*self.kinds, *kept})


def best_rate(records: Records, encoding: str) -> float:
    """The rate of the encoding that was best in its trials; 1 where it has no parameters."""
    trials = {
        job.rate: share_right(record["tests"]["validation"])
        for job, record in records.items()
        if (job.part, job.encoding) == ("rate", encoding)
    }
    return max(trials, key=lambda rate: (trials[rate], -rate), default=1.0)


def learns(tier: Tier, encoding: str) -> bool:
    """Whether it has parameters."""
    plain = build(tier, 2, "mean", seed=0)
    return parameters(add_encoding(build(tier, 2, "mean", seed=0), encoding)) > parameters(plain)


def share_right(counts: Sequence[int]) -> float:
    """Of the images of a test."""
    right, total = counts
    return right / total
