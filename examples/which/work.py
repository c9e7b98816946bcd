"""What a worker does: one job, from nothing to its numbers."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from which.cells import probe
from which.conditions import by_other_rule, score, score_sizes
from which.cost import measure
from which.results import Job, Record
from which.sources import Source, open_source
from which.tiers import Tier
from which.training import count_right, train


def find_out(
    job: Job, tier: Tier, data: Path, rates: tuple[float, float], kinds: tuple[str, ...]
) -> Record:
    """The record of a job: of each test, the images classified correctly and all images.

    Args:
        job: what to find out.
        tier: the sizes.
        data: folder of images.
        rates: of the encoding, and of a learned table beside it.
        kinds: of conditions that a training with the encoding alone is tested on.
    """
    if tier.device == "cpu":
        torch.set_num_threads(1)
    started = time.process_time()
    record = _record(job, tier, data, rates, kinds)
    return {**record, "seconds": round(time.process_time() - started, 1)}


def _record(
    job: Job, tier: Tier, data: Path, rates: tuple[float, float], kinds: tuple[str, ...]
) -> Record:
    if job.part == "cost":
        return measure(tier, job.encoding)
    if job.part == "cells":
        return {"tests": {"cells": probe(job.encoding, job.seed, tier)}}
    source = open_source(tier.name, data, tier.pixels, tier.validation)
    if job.part == "rate":
        return _trial(job, tier, source)
    rate, table_rate = rates
    model = train(
        tier,
        source,
        job.encoding,
        beside=job.part == "beside",
        readout=job.readout,
        seed=job.seed,
        rate=rate,
        table_rate=table_rate,
        share=job.share,
    )
    if job.part != "alone":
        return {"rate": rate, "tests": score(tier, source, model, job.seed, ())}
    record: Record = {"rate": rate, "kinds": list(kinds)}
    record["tests"] = score(tier, source, model, job.seed, kinds)
    if "size" in kinds:
        other = by_other_rule(tier, source, model, job.encoding, job.readout)
        if other is not None:
            record["other rule"] = score_sizes(tier, source, other, job.seed)
    return record


def _trial(job: Job, tier: Tier, source: Source) -> Record:
    """Half a training, tested on images that are there to choose the rate."""
    options = {"beside": False, "readout": job.readout, "seed": job.seed}
    model = train(tier, source, job.encoding, **options, rate=job.rate, length=0.5)
    found = count_right(tier, model, source.validation(tier.validation))
    return {"tests": {"validation": found}}
