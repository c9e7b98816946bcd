"""What all parts found, as tables in Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
PLAIN_KERNELS = ("flash", "cudnn", "efficient")


def markdown(reports: dict[str, Row]) -> str:
    """A section for each part that began."""
    parts = [_head(next(iter(reports.values())))]
    for name, report in reports.items():
        body = SECTIONS[name](report["rows"]) if name in SECTIONS else ""
        parts.append("\n\n".join(filter(None, [f"## {_title(name, report)}", body, _end(report)])))
    return "\n\n".join(parts) + "\n"


def _head(report: Row) -> str:
    facts = ", ".join(
        f"{name} {report[name]}"
        for name in ("device", "architecture", "torch", "triton", "timm", "python", "commit")
    )
    return f"# `{report['command']}`\n\n{facts}"


def _title(name: str, report: Row) -> str:
    return f"{name}: {report['status']}, {len(report['rows'])} rows"


def _end(report: Row) -> str:
    lines = []
    if skipped := report["skipped"]:
        shown = "; ".join(skipped[:10]) + ("; ..." if len(skipped) > 10 else "")
        lines.append(f"No time for {len(skipped)}: {shown}")
    if traceback := report.get("traceback"):
        lines.append(f"```\n{traceback.strip()[-1500:]}\n```")
    return "\n\n".join(lines)


def _correctness(rows: list[Row]) -> str:
    """Counts by family, and every failure."""
    counts: dict[str, Counter[bool | None]] = defaultdict(Counter)
    worst: dict[str, float] = defaultdict(float)
    for row in rows:
        counts[row["family"]][row["passed"]] += 1
        if row.get("error") is not None:
            share = row["error"] / row["allowed"]
            worst[row["family"]] = max(worst[row["family"]], share)
    table = [
        [family, c[True], c[False], c[None], f"{worst[family]:.2f}" if family in worst else "-"]
        for family, c in counts.items()
    ]
    text = _table(("checks", "passed", "failed", "stopped", "largest error over allowed"), table)
    failed = [row for row in rows if row["passed"] is False]
    last = [f"- {row['check']}: {row['failure'].strip().splitlines()[-1]}" for row in failed]
    return "\n\n".join(filter(None, [text, "\n".join(last)]))


def _ratios(rows: list[Row]) -> str:
    """Over plain SDPA by default and by name, in the order in which they were measured."""
    named = {
        (row["backend"], row["shape"], row["pass"]): row["milliseconds"]
        for row in rows
        if row["case"] == "plain" and row.get("milliseconds")
    }
    own = {_key(row): row["milliseconds"] for row in rows if row.get("milliseconds")}
    header = ["case", "backend", "tokens", "pass", "ms", "over default"]
    header += [f"over {kernel}" for kernel in PLAIN_KERNELS]
    header += ["kernels alone", "of roofline", "memory"]
    table = []
    for row in rows:
        name = row["backend"] + (", deterministic" if row["deterministic"] else "")
        start = [f"`{row['case']}`", name, row["shape"], row["pass"]]
        if row["median"] is None:
            table.append([*start, row["failure"], *["-"] * (len(header) - 5)])
            continue
        ms = row["milliseconds"]
        over = [_ratio(ms, named.get((k, row["shape"], row["pass"]))) for k in PLAIN_KERNELS]
        default = f"{row['median']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
        if row["deterministic"]:  # where plain SDPA is another: over itself
            default = f"{_ratio(ms, own.get((*_key(row)[:-1], False)))} of itself"
        rest = [_number(row.get("device_ratio")), f"{row['share_of_roofline']:.0%}"]
        table.append([*start, f"{ms:.3f}", default, *over, *rest, f"{row['memory_ratio']:.1f}x"])
    reasons = {
        f"- {row['case']}, {row['backend']}: {row['reason']}" for row in rows if row["reason"]
    }
    return "\n\n".join([_table(header, table), "\n".join(sorted(reasons))])


def _key(row: Row) -> tuple[Any, ...]:
    return row["case"], row["backend"], row["shape"], row["pass"], row["deterministic"]


def _tiles(rows: list[Row]) -> str:
    """Of each kind and kernel: today's time, and the three fastest sizes."""
    times: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        for kernel, ms in row["milliseconds"].items():
            times[row["case"], kernel][row["tile"]] = ms
    table = []
    for (case, kernel), by_tile in times.items():
        best = sorted(by_tile.items(), key=lambda pair: pair[1])[:3]
        shown = "; ".join(f"{tile}: {ms:.3f}" for tile, ms in best)
        table.append([f"`{case}`", kernel, _number(by_tile.get("default"), 3), shown])
    return _table(("case", "kernel", "ms by the tables", "fastest"), table)


def _picker(rows: list[Row]) -> str:
    """Every choice, the wrong ones first."""
    order = {False: 0, None: 1, True: 2}
    table = [
        [
            f"`{row['case']}`",
            row["shape"],
            row["pass"],
            row["choice"],
            row["fastest"],
            _number(row["times_the_fastest"]),
            {True: "yes", False: "**no**", None: "not measured"}[row["is_right"]],
        ]
        for row in sorted(rows, key=lambda row: order[row["is_right"]])
    ]
    header = ("case", "tokens", "pass", "auto takes", "fastest", "over the fastest", "right")
    return _table(header, table)


def _models(rows: list[Row]) -> str:
    table = []
    for row in rows:
        kind = "compiled" if row["compiled"] else "eager"
        start = [row["model"], f"`{row['encoding']}`", row["pass"], kind]
        if row["failure"]:
            table.append([*start, row["failure"].splitlines()[0][:80], "-"])
        else:
            spread = f"{row['median']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
            table.append([*start, spread, f"{row['images_per_second']:.0f}"])
    return _table(("model", "encoding", "pass", "mode", "over unpatched", "images/s"), table)


SECTIONS = {
    "correctness": _correctness,
    "ratios": _ratios,
    "tiles": _tiles,
    "picker": _picker,
    "models": _models,
}


def _ratio(ms: float, over: float | None) -> str:
    return "-" if over is None else f"{ms / over:.2f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
