"""The experiment as tables, a picture, and what can be concluded from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from findings.conditions import CONDITIONS
from findings.results import BASE, LEVEL, Difference, Results

COLUMNS = 2  # of the picture
MARKS = {"better": " ★", "worse": " ∘", "no clear difference": ""}
QUESTIONS = (  # an encoding that knows the body, and what it is to be compared with
    ("body", "learned"),
    ("learned+human_part", "learned"),
    ("body+human_part", "learned"),
    ("body+human_part", "body"),
    ("body(adaptive)", "body"),
)


def write_report(report: dict[str, Any], out: Path) -> str:
    """Writes experiment.md and experiment.png; returns the text."""
    results = Results.of(report["results"])
    lines = ["# Person re-identification with each encoding", ""]
    for pool in results.pools:
        lines += [f"## mAP in percent, {_readout(pool)}", "", *table(results, pool), ""]
    lines += [*_legend(results), "", "![The same, with a dot for each seed](experiment.png)", ""]
    lines += _section(f"Against `{BASE}`", conclusions(results))
    lines += _section("Does it help to know the body?", answers(results))
    lines += [*differences(results), "## How this was measured", "", *_notes(report)]
    text = "\n".join(lines)
    (out / "experiment.md").write_text(text + "\n")
    draw(results, out / "experiment.png")
    return text


def table(results: Results, pool: str) -> list[str]:
    """A row for each encoding: mean, spread and mark in each test."""
    verdicts = {test: results.against_base(pool, test) for test in results.tests}
    rows = []
    for encoding in results.encodings:
        cells = []
        for test in results.tests:
            verdict = verdicts[test].get(encoding)
            mark = MARKS[verdict.kind] if verdict else ""
            cells.append(spread(results.of_test(encoding, pool, test)) + mark)
        rows.append([f"`{encoding}`", *_seeds(results, encoding, pool=pool), *cells])
    return _table(["encoding", *_seeds(results), *results.tests], rows)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, as far as there are any."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def conclusions(results: Results) -> list[str]:
    """Which encodings are better than `BASE`, and which cannot be told from it."""
    lines = []
    for pool in results.pools:
        for test in results.tests:
            kinds: dict[str, list[str]] = {kind: [] for kind in MARKS}
            for encoding, verdict in results.against_base(pool, test).items():
                kinds[verdict.kind].append(f"`{encoding}` ({verdict.gain:+.1f})")
            worse = kinds.pop("worse")
            said = [f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names]
            said += [f"worse: the other {len(worse)}"] if worse else []
            lines += [f"- {_readout(pool)}, {test}: {'; '.join(said)}"] if said else []
    return lines


def answers(results: Results) -> list[str]:
    """A row for each of `QUESTIONS` and readout: the difference in each test, with its interval."""
    rows = []
    for pair in QUESTIONS:
        for pool in results.pools:
            found = [results.difference(*pair, pool, test) for test in results.tests]
            if any(found):
                words = "`{}` against `{}`".format(*pair)
                counts = _seeds(results, *pair, pool=pool)
                rows.append([words, pool, *counts, *map(_interval, found)])
    if not rows:
        return []
    return [
        "Differences of the means in points of mAP, with their "
        f"{1 - LEVEL:.0%} intervals (paired t over the seeds that both have). **Bold**: 0 is not "
        "in the interval, so that these seeds tell the two apart. Each interval stands for itself: "
        "of twenty, one is expected to miss.",
        "",
        *_table(["", "readout", *_seeds(results), *results.tests], rows),
    ]


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    low, high = difference.interval
    mean, is_clear = f"{difference.mean:+.1f}", not low <= 0 <= high
    return f"{f'**{mean}**' if is_clear else mean} ({low:+.1f} to {high:+.1f})"


def differences(results: Results) -> list[str]:
    """All gains over `BASE` with their p, folded away."""
    lines = []
    for pool in results.pools:
        verdicts = [results.against_base(pool, test) for test in results.tests]
        rows = [
            [f"`{one}`", *(_gain(*found[one]) if one in found else "-" for found in verdicts)]
            for one in results.encodings
            if any(one in found for found in verdicts)
        ]
        if rows:
            lines += [f"{_readout(pool)}:", "", *_table(["encoding", *results.tests], rows), ""]
    if not lines:
        return []
    summary = f"Differences from {BASE}, and the adjusted p of each"
    return ["<details>", f"<summary>{summary}</summary>", "", *lines, "</details>", ""]


def _gain(gain: float, p: float) -> str:
    return f"{gain:+.1f} (p < 0.001)" if p < 0.001 else f"{gain:+.1f} (p {p:.3f})"


def draw(results: Results, path: Path) -> None:
    """A dot for each seed."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    encodings, tests = results.encodings, results.tests
    rows = math.ceil(len(tests) / COLUMNS)
    columns = math.ceil(len(tests) / rows)
    size = 4.2 * columns, (0.24 * len(encodings) + 0.9) * rows + 0.4
    figure, axes = plt.subplots(
        rows, columns, figsize=size, sharey=True, layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(tests) :]:
        axis.set_axis_off()
    for axis, test in zip(axes.flat, tests, strict=False):
        for number, pool in enumerate(results.pools):
            for place, encoding in enumerate(encodings):
                if values := results.of_test(encoding, pool, test):
                    y = len(encodings) - place + 0.18 - 0.36 * number
                    axis.plot(values, [y] * len(values), "o", color=f"C{number}", alpha=0.4, ms=4)
                    axis.plot(statistics.mean(values), y, "|", color=f"C{number}", ms=9, mew=2)
        axis.set(title=test, ylim=(0.4, len(encodings) + 0.6))
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("mAP in %")
    axes[0, 0].set_yticks([len(encodings) - i for i in range(len(encodings))], encodings)
    handles = [
        plt.Line2D([], [], marker="o", ls="", color=f"C{i}", label=_readout(pool))
        for i, pool in enumerate(results.pools)
    ]
    handles.append(plt.Line2D([], [], marker="|", ls="", color="gray", ms=9, mew=2, label="mean"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.savefig(path, dpi=120)
    plt.close(figure)


# Markdown


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _readout(pool: str) -> str:
    return f"{pool} token"


def _seeds(results: Results, *encodings: str, pool: str = "") -> list[str]:
    """A cell of the column of seeds, or without encodings its head; where it is needed."""
    if len(results.seed_counts) == 1:
        return []
    return [str(results.seeds(*encodings, pool=pool))] if encodings else ["seeds"]


def _legend(results: Results) -> list[str]:
    fewest, most = results.seed_counts[0], results.seed_counts[-1]
    number, remark = f"{most} seeds", ""
    if fewest < most:
        number = f"{fewest} to {most} seeds (see the column)"
        remark = " With other seeds come other people: such rows are compared by differences alone."
    conditions = ". ".join(f"*{test}*: {CONDITIONS[test]}" for test in results.tests[1:])
    return [
        f"Mean and standard deviation over {number}, each with people of its own. "
        f"★ better than `{BASE}`, ∘ worse: p < {LEVEL} in a paired t-test over the seeds that both "
        "have, adjusted for the encodings of a column (Benjamini and Hochberg). No mark: these "
        f"seeds cannot tell it from `{BASE}`.{remark} {conditions}."
    ]


def _notes(report: dict[str, Any]) -> Iterator[str]:
    config, recipe = report["config"], report["recipe"]
    for remark in report.get("remarks", []):  # added by hand
        yield f"- {remark}"
    yield f"- command: `{report['command']}`, {_time(report)}"
    yield (
        f"- ViT: {config['vit']} with {config['vit_args']}, crops {config['height']}x"
        f"{config['width']}"
    )
    if report.get("positions", "alone") != "alone":
        yield (
            "- the model keeps its own table of positions, and each encoding stands beside it: "
            "`none` is that table alone, `learned` a second one that starts at zero"
        )
    yield (
        f"- training: {config['epochs']} epochs of {recipe['train_people']} synthetic people with "
        f"{recipe['photos']} photos each, test on {recipe['test_people']} others, "
        f"`--wardrobe {recipe.get('wardrobe', 'toy')}`"  # the first reports knew no other
    )
    yield f"- commit {report['commit']}, {report['versions']}"


def _time(report: dict[str, Any]) -> str:
    if "cpu_minutes" in report:
        return f"{report['cpu_minutes']} minutes of one thread"
    return f"{report['minutes']} minutes"
