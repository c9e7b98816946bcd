"""The page: a guide for those who choose, and all that it stands on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from which.claims import has_both_axes, verdicts
from which.conditions import CROP, SHIFT
from which.contenders import CONTENDERS, READOUTS
from which.figures import SIZES, draw_costs, draw_rankings, draw_sizes
from which.guide import Answer, answers, rows
from which.measures import MEASURES, Measure, agreement, difference, standings
from which.plan import SHARES, best_rate, share_right
from which.results import Job, Record, Records

LEVEL = 0.05
FIGURES = {  # name -> how it is drawn, its words, and measures of which it needs one
    "sizes.png": (draw_sizes, "Accuracy against the size of the test images", ["4.57x"]),
    "rankings.png": (draw_rankings, "Rankings with 95 % intervals", [*MEASURES]),
    "costs.png": (draw_costs, "Accuracy against the time of a training step", ["mean"]),
}


def write_page(out: Path) -> Path:
    """Writes OUT.md, the figures and guide.json in OUT; returns the page."""
    kept = json.loads((out / "results.json").read_text())
    records: Records = {Job(*record.pop("job")): record for record in kept["records"]}
    page = out.with_suffix(".md")
    for name, (draw, _, needed) in FIGURES.items():
        (out / name).unlink(missing_ok=True)
        if any(MEASURES[measure].counts(records) for measure in needed):
            draw(records, out / name)
    found = answers(records)
    page.write_text("\n".join(_lines(kept, records, found, out)) + "\n")
    guide = rows(found)
    (out / "guide.json").write_text(json.dumps(guide, indent=1, ensure_ascii=False) + "\n")
    return page


def _lines(kept: Record, records: Records, found: list[Answer], out: Path) -> list[str]:
    tier = kept["tier"]
    return [
        "# Which encoding?",
        "",
        *_introduction(tier, records),
        "",
        "## A guide",
        "",
        *_guide(found),
        "",
        *(line for one in found for line in (_evidence(one), "")),
        *_figure("rankings.png", out),
        "## All numbers",
        "",
        *_numbers(records),
        "",
        *_figure("costs.png", out),
        "## Other sizes",
        "",
        *_figure("sizes.png", out),
        *_sizes(records),
        "",
        "## Few images",
        "",
        *_few(records),
        "",
        "## Beside a learned table",
        "",
        *_beside(records),
        "",
        "## The three-cell test",
        "",
        *_cells(records),
        "",
        "## What papers claim",
        "",
        *_claims(records),
        "",
        "## Do the tests agree?",
        "",
        *_agreement(records),
        "",
        "## How it was made",
        "",
        *_origin(kept, records),
    ]


def _introduction(tier: Record, records: Records) -> list[str]:
    seeds = {job.seed for job in records if job.part not in ("rate", "cost")}
    vit = tier["vit"]
    patches = tier["pixels"] // vit["patch_size"]
    return [
        "The same vision transformer was trained with each encoding: with the same first weights, "
        "the same batches in the same order, and the same number of steps. It has no other "
        f"positions. The model is small (width {vit['embed_dim']}, {vit['depth']} blocks, "
        f"{vit['num_heads']} heads, {patches}x{patches} patches and a CLS token), and the data are "
        + ("Fashion-MNIST" if tier["name"] == "cpu" else "a folder of photographs")
        + f", of which a training sees {tier['passes']:,} images: a result here is a reason to try "
        "an encoding first, and no law for large models or long trainings.",
        "",
        *_missing(records),
        f"Encodings were trained with up to {len(seeds)} seeds, and a seed chooses "
        "weights, training images and test images. An interval says where 95 % of 4,000 "
        "resamplings lie, over seeds and over test images. Seeds are few, so the intervals are "
        "rather too short than too long. *May be the best* means: the interval of its distance "
        "to the best reaches zero.",
    ]


def _guide(found: list[Answer]) -> list[str]:
    if not found:
        return ["No question was answered yet."]
    body = [[one.question.asked, one.take, one.certainty] for one in found]
    return table(["when", "take", "how sure"], body)


def _missing(records: Records) -> list[str]:
    """A warning where parts of the comparison were not run."""
    names = {
        "cells": "the three-cell test",
        "alone": "the trainings with each encoding alone",
        "few": "those with few images",
        "beside": "those beside a learned table",
        "cost": "the costs",
    }
    found = {job.part for job in records}
    missing = [said for part, said in names.items() if part not in found]
    if "alone" in found:
        kinds = {"other sizes": "1.5x to 3x", "shift and crop": "moved"}
        missing += [said for said, name in kinds.items() if not MEASURES[name].counts(records)]
    if not missing:
        return []
    return [f"**Not all was run yet**: {', '.join(missing)} are missing.", ""]


def _evidence(answer: Answer) -> str:
    others = ", ".join(f"`{name}`" for name in answer.best[1:]) or "none"
    return (
        f"**{answer.question.asked}.** `{answer.best[0]}`: {answer.evidence}. Also may be the "
        f"best: {others}. Certainty: {answer.certainty}. Limits: {answer.question.limits}."
    )


def _figure(name: str, out: Path) -> list[str]:
    """Nothing where there was nothing to draw."""
    return [f"![{FIGURES[name][1]}]({out.name}/{name})", ""] if (out / name).is_file() else []


def _numbers(records: Records) -> list[str]:
    columns = {name: standings(records, measure) for name, measure in MEASURES.items()}
    columns = {name: standing for name, standing in columns.items() if standing}
    encodings = [name for name in CONTENDERS if any(name in one for one in columns.values())]
    body = []
    for encoding in encodings:
        cells = [_cell(standing, encoding) for standing in columns.values()]
        body.append([f"`{encoding}`", *cells, *_cost(records.get(Job("cost", encoding)))])
    costs = ["parameters", "forward", "training"]
    return [
        *table(["encoding", *columns, *costs], body),
        "",
        "Test images classified correctly, in percent, and in parentheses the 95 % interval of "
        "the rank. Bold: may be the best of its column. Forward and training: time as a ratio to "
        "the model without positions.",
    ]


def _cell(standing: dict[str, Any], encoding: str) -> str:
    if encoding not in standing:
        return "-"
    one = standing[encoding]
    mean = f"**{one.mean:.1f}**" if one.may_be_best else f"{one.mean:.1f}"
    low, high = one.ranks
    return f"{mean} ({low})" if low == high else f"{mean} ({low} to {high})"


def _cost(record: Record | None) -> list[str]:
    if record is None:
        return ["-"] * 3
    times = (f"{record[name]['median']:.2f}" for name in ("forward", "training"))
    return [f"{record['parameters']:,}", *times]


def _sizes(records: Records) -> list[str]:
    conditions = [*SIZES, "2:1", "1:2"]
    body = []
    for encoding, contender in CONTENDERS.items():
        own = [_both(records, encoding, name) for name in conditions]
        if any(cell != "-" for cell in own):
            body.append([f"`{encoding}`", contender.rule, *own])
        other = [_both(records, encoding, name, "other rule") for name in conditions[1:]]
        if any(cell != "-" for cell in other):
            body.append([f"`{encoding}`", f"*{contender.other_rule}*", "", *other])
    if not body:
        return ["Not measured."]
    return [
        "Means of both readouts in percent. In italics: the other rule that the encoding offers, "
        "with the same weights. 2:1 is twice as tall as wide.",
        "",
        *table(["encoding", "rule at another size", *conditions], body),
    ]


def _both(records: Records, encoding: str, condition: str, key: str = "tests") -> str:
    """The mean over the seeds of each readout, and then over the readouts."""
    values: dict[str, list[float]] = {}
    for job, record in records.items():
        counts = record.get(key, {}).get(condition)
        if (job.part, job.encoding) == ("alone", encoding) and counts:
            values.setdefault(job.readout, []).append(share_right(counts))
    if len(values) < len(READOUTS):
        return "-"
    return f"{100 * statistics.mean(map(statistics.mean, values.values())):.1f}"


def _few(records: Records) -> list[str]:
    parts = {share: standings(records, _few_measure(share)) for share in SHARES}
    whole = standings(records, MEASURES["mean"])
    names = [name for name in CONTENDERS if any(name in one for one in parts.values())]
    if not names:
        return ["Not measured."]
    columns = [*(f"1/{round(1 / share)}" for share in SHARES), "all"]
    body = [
        [f"`{name}`", *(_cell(one, name) for one in parts.values()), _cell(whole, name)]
        for name in names
    ]
    return [
        "Trainings as long as the others with a part of the images, so each is seen more often; "
        "mean token. The last column ranks all encodings.",
        "",
        *table(["encoding", *columns], body),
    ]


def _few_measure(share: float) -> Measure:
    return Measure("few", "few", ("mean",), ("1x",), share)


def _beside(records: Records) -> list[str]:
    measure = MEASURES["beside a table"]
    body = []
    for encoding in measure.counts(records):
        gain = difference(records, (measure, encoding), (MEASURES["mean"], "learned"))
        if gain is not None:
            body.append([f"`{encoding}`", _interval(gain), _word(gain)])
    if not body:
        return ["Not measured."]
    return [
        "Points gained over the learned table alone, with the mean token, and the 95 % interval. "
        "The table and the encoding learn at the rates that were best for each of them alone.",
        "",
        *table(["encoding beside `learned`", "gain", "which is"], body),
    ]


def _word(gain: tuple[float, float, float]) -> str:
    return "a gain" if gain[1] > 0 else "a loss" if gain[2] < 0 else "undecided"


def _cells(records: Records) -> list[str]:
    found = standings(records, MEASURES["three cells"])
    if "none" not in found:
        return ["Not measured."]
    above, below = has_both_axes(records)
    said = (
        "Four classes differ only by the relative places of three cells (`examples/three_cells.py`)"
        f". Without positions the model classifies {found['none'].mean:.1f} % correctly; chance is "
        f"25 %, and one axis alone gives 50 %. {len(above)} of {len(found) - 1} encodings are at "
        "least 25 points above it"
    )
    said += f"; these are not: {', '.join(f'`{name}`' for name in below)}." if below else "."
    cells = [
        [f"`{name}`", f"{one.mean:.1f}", f"{one.low:.1f} to {one.high:.1f}"]
        for name, one in found.items()
    ]
    return [said, "", *table(["encoding", "classified correctly, in %", "95 % interval"], cells)]


def _claims(records: Records) -> list[str]:
    body = [
        [claim.text, claim.source, f"{claim.points:+.1f}", _interval(here), word]
        for claim, here, word in verdicts(records)
    ]
    return [
        "The same difference in this comparison. Models, data and trainings are others, so a "
        "contrary result refutes no paper: it says that the finding does not carry over to here.",
        "",
        *table(["claim", "source", "paper", "here", "verdict"], body),
    ]


def _agreement(records: Records) -> list[str]:
    found = agreement(records)
    if not found:
        return ["Not measured."]
    names = [name for name in MEASURES if any(name in pair for pair in found)]
    body = []
    for one in names:
        cells = [found.get((one, other)) or found.get((other, one)) for other in names]
        body.append([one, *(_tau(cell) for cell in cells)])
    return [
        "Kendall's tau-b between the rankings of two tests, without `none`: 1 is the same order, 0 "
        f"none, -1 the contrary; in parentheses p, and a star where p < {LEVEL}. Of {len(found)} "
        f"such tests {LEVEL * len(found):.2g} would have a star by chance, and tests of the same "
        "trained models are not independent. Where tau is small, a ranking says little about the "
        "other question.",
        "",
        *table(["", *names], body),
    ]


def _tau(cell: tuple[float, float, int] | None) -> str:
    if cell is None:
        return ""
    tau, p, _ = cell
    return f"{tau:+.2f}{'*' if p < LEVEL else ''} ({p:.2g})"


def _origin(kept: Record, records: Records) -> list[str]:
    tier = kept["tier"]
    hours = sum(record["seconds"] for record in records.values()) / 3600
    images = min(tier["images"], kept["data"]["training images"])
    known = {
        name: ", ".join(sorted({record[name] for record in records.values()}))
        for name in ("commit", "device", "python", "torch", "timm")
    }
    return [
        f"- command: `{kept['command']}`, {len(records)} jobs, {hours:.1f} hours of processor time",
        f"- training: {tier['passes']:,} passes over {images:,} images, batch "
        f"{tier['batch']}, AdamW, learning rate {tier['rate']:g}; an encoding learns "
        f"{', '.join(f'{rate:g}' for rate in tier['rates'])} times as fast, whichever was best on "
        f"{tier['validation']:,} other images in one training of half the length, with the mean "
        f"token: {_rates(records)}{_at_the_end(tier, records)}",
        f"- tests: {_test_images(tier)}; shifted by {SHIFT:.3g} of the side and cropped to "
        f"{CROP:.3g} of it, {tier['moved']:,} images each; the same images for all encodings",
        f"- code at commit {known['commit']}, Python {known['python']}, torch {known['torch']}, "
        f"timm {known['timm']}, {known['device']}",
        "- costs: medians of pairs timed in turns, on an otherwise idle machine only if you left "
        "it so; on a CPU with one thread",
    ]


def _rates(records: Records) -> str:
    chosen = {job.encoding: record["rate"] for job, record in records.items() if job[0] == "alone"}
    names = {rate: [e for e in chosen if chosen[e] == rate] for rate in sorted({*chosen.values()})}
    return "; ".join(f"{rate:g} for {', '.join(those)}" for rate, those in names.items())


def _at_the_end(tier: Record, records: Records) -> str:
    """A warning where a rate that was not tried may be better than those that were."""
    last = max(tier["rates"])
    tried = {job.encoding for job in records if (job.part, job.rate) == ("rate", last)}
    those = sorted(name for name in tried if best_rate(records, name) == last)
    if not those:
        return ""
    return f" (the highest was best for {', '.join(those)}: a higher one might be better still)"


def _test_images(tier: Record) -> str:
    counts = ", ".join(f"{count:,} at {float(f):.3g}x" for f, count in tier["counts"].items())
    return f"{counts}, {tier['wide']:,} of each rectangle"


def _interval(values: tuple[float, float, float]) -> str:
    middle, low, high = values
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *body]
    return [f"| {' | '.join(line)} |" for line in lines]
