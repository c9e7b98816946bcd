"""The experiment as a table, a picture, and what can be concluded from it."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import false_discovery_control, ttest_rel

from findings.conditions import CONDITIONS

BASE = "learned"
LEVEL = 0.05
COLUMNS = 3  # of the picture
Results = dict[tuple[str, str, str], list[float]]  # (encoding, pool, test) -> mAP of each seed


def write_report(report: dict[str, Any], out: Path) -> str:
    """Writes experiment.md and experiment.png; returns the text."""
    results = gather(report["results"])
    pools = list(dict.fromkeys(pool for _, pool, _ in results))
    tests = list(dict.fromkeys(test for _, _, test in results))
    lines = ["# Person re-identification with each encoding", ""]
    for pool in pools:
        lines += [f"mAP in percent, {_readout(pool)}:", "", *table(results, pool, tests), ""]
    lines += [*_legend(results), "", *conclusions(results, pools, tests), "", *_notes(report)]
    text = "\n".join(lines)
    (out / "experiment.md").write_text(text + "\n")
    draw(results, pools, out / "experiment.png")
    return text


def gather(records: list[dict[str, Any]]) -> Results:
    """Seeds in order."""
    results: Results = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        for test, scores in record["tests"].items():
            key = record["encoding"], record["pool"], test
            results.setdefault(key, []).append(100 * scores["mAP"])
    names = list(dict.fromkeys(record["encoding"] for record in records))
    return {key: results[key] for key in sorted(results, key=lambda key: names.index(key[0]))}


def table(results: Results, pool: str, tests: list[str]) -> list[str]:
    """A row for each encoding: mean and spread of each test, and the paired test against BASE."""
    lines = ["| encoding | " + " | ".join(f"{test} | p" for test in tests) + " |"]
    lines.append("|---" * (1 + 2 * len(tests)) + "|")
    chances = {test: p_values(results, pool, test) for test in tests}
    for encoding in dict.fromkeys(encoding for encoding, _, _ in results):
        cells = [f"`{encoding}`"]
        for test in tests:
            values = results[encoding, pool, test]
            cells.append(f"{statistics.mean(values):.1f} ± {spread(values):.1f}")
            p = chances[test].get(encoding)
            cells.append("-" if p is None else f"{p:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def p_values(results: Results, pool: str, test: str) -> dict[str, float]:
    """Encoding -> p of a paired t-test over seeds against BASE, adjusted for their number."""
    base = results.get((BASE, pool, test))
    others = [e for e, p, t in results if (p, t) == (pool, test) and e != BASE]
    if base is None or len(base) < 2 or not others:
        return {}
    raw = [_paired(results[other, pool, test], base) for other in others]
    return dict(zip(others, false_discovery_control(raw).tolist(), strict=True))


def _paired(values: list[float], base: list[float]) -> float:
    return 1.0 if values == base else float(ttest_rel(values, base).pvalue)


def conclusions(results: Results, pools: list[str], tests: list[str]) -> list[str]:
    """Who is better or worse than BASE, where the paired test says so."""
    lines = []
    for pool in pools:
        for test in tests:
            kinds: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
            for encoding, p in p_values(results, pool, test).items():
                gain = statistics.mean(results[encoding, pool, test]) - statistics.mean(
                    results[BASE, pool, test]
                )
                kind = "no clear difference" if p >= LEVEL else "better" if gain > 0 else "worse"
                kinds[kind].append(f"`{encoding}` ({gain:+.1f})")
            said = "; ".join(
                f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names
            )
            if said:
                lines.append(f"- {_readout(pool)}, {test}, against `{BASE}`: {said}")
    return lines


def spread(values: list[float]) -> float:
    """The standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw(results: Results, pools: list[str], path: Path) -> None:
    """A dot for each seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    encodings = list(dict.fromkeys(encoding for encoding, _, _ in results))
    tests = list(dict.fromkeys(test for _, _, test in results))
    rows = math.ceil(len(tests) / COLUMNS)
    columns = math.ceil(len(tests) / rows)
    size = 4 * columns, max(4.2, 0.3 * len(encodings) + 1) * rows
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharey=True, layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(tests) :]:
        axis.set_axis_off()
    for axis, test in zip(axes.flat, tests, strict=False):
        for number, pool in enumerate(pools):
            for place, encoding in enumerate(encodings):
                values = results[encoding, pool, test]
                y = len(encodings) - place + 0.18 - 0.36 * number
                axis.plot(values, [y] * len(values), "o", color=f"C{number}", alpha=0.35, ms=4)
                axis.plot(statistics.mean(values), y, "|", color=f"C{number}", ms=12, mew=2)
        axis.set(title=test, xlabel="mAP in %")
        axis.grid(alpha=0.3)
    axes[0, 0].set_yticks([len(encodings) - i for i in range(len(encodings))], encodings)
    handles = [plt.Line2D([], [], marker="o", ls="", color=f"C{i}") for i in range(len(pools))]
    labels = [_readout(pool) for pool in pools]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(pools))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _readout(pool: str) -> str:
    return f"{pool} token"


def _legend(results: Results) -> list[str]:
    seeds = len(next(iter(results.values())))
    tests = list(dict.fromkeys(test for _, _, test in results))[1:]  # the first: as trained
    conditions = ". ".join(f"*{test}*: {CONDITIONS[test]}" for test in tests)
    return [
        f"Mean and standard deviation over {seeds} seeds, each with people of its own. p: paired "
        f"t-test over seeds against `{BASE}`, adjusted for the encodings of a column "
        f"(Benjamini and Hochberg). {conditions}."
    ]


def _notes(report: dict[str, Any]) -> list[str]:
    config, recipe = report["config"], report["recipe"]
    remarks = [f"- {remark}" for remark in report.get("remarks", [])]  # added by hand
    return [
        *remarks,
        f"- command: `{report['command']}`, {_time(report)}",
        f"- ViT: {config['vit']} with {config['vit_args']}, crops {config['height']}x"
        f"{config['width']}",
        *_positions(report),
        f"- training: {config['epochs']} epochs of {recipe['train_people']} synthetic people with "
        f"{recipe['photos']} photos each, test on {recipe['test_people']} others, "
        f"`--wardrobe {recipe.get('wardrobe', 'toy')}`",  # the first reports knew no other
        f"- commit {report['commit']}, {report['versions']}",
    ]


def _time(report: dict[str, Any]) -> str:
    if "cpu_minutes" in report:
        return f"{report['cpu_minutes']} minutes of one thread"
    return f"{report['minutes']} minutes"


def _positions(report: dict[str, Any]) -> list[str]:
    """What an encoding stands beside."""
    if report.get("positions", "alone") == "alone":
        return []
    return [
        "- the model keeps its own table of positions, and each encoding stands beside it: `none` "
        "is that table alone, `learned` a second one that starts at zero"
    ]
