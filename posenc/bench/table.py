"""The table of a report, in Markdown."""

from __future__ import annotations

from typing import Any

from posenc.bench.timing import Ratio

Row = dict[str, Any]  # of the JSON report


def markdown(rows: list[Row]) -> str:
    """One line per encoding and backend; per shape the ratio and what else was measured."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    lines = list(dict.fromkeys((row["case"], row["backend"]) for row in rows))
    cells = {(row["case"], row["backend"], row["shape"]): row for row in rows}
    quantities = [q for q in QUANTITIES if any(row.get(q) is not None for row in rows)]
    header = ["encoding", "backend"]
    for shape in shapes:
        header += [shape, *(QUANTITIES[quantity][0] for quantity in quantities)]
    table = [header, ["---"] * len(header)]
    for case, backend in lines:
        of_line = [cells[case, backend, shape] for shape in shapes]
        table.append([f"`{case}`", backend_text(of_line)])
        for row in of_line:
            table[-1] += [ratio_text(row), *(quantity_text(row, q) for q in quantities)]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


QUANTITIES = {  # key: heading, format
    "milliseconds": ("ms", "{:.3f}"),
    "memory_ratio": ("memory", "{:.1f}x"),
    "share_of_roofline": ("of roofline", "{:.0%}"),
}


def quantity_text(row: Row, quantity: str) -> str:
    """Formatted, or a dash."""
    value = row.get(quantity)
    return "-" if value is None else QUANTITIES[quantity][1].format(value)


def ratio_text(row: Row) -> str:
    """The ratio and its quartiles, or in two words why there is none."""
    if row["median"] is None:
        return row["failure"]
    return str(Ratio(row["median"], row["low"], row["high"]))


def backend_text(rows: list[Row]) -> str:
    """The backend, and which ones "auto" chose: with their shapes, where they differ."""
    if rows[0]["backend"] != "auto":
        return rows[0]["backend"]
    shapes: dict[str, list[str]] = {}
    for row in rows:
        shapes.setdefault(row["backend_used"], []).append(row["shape"])
    if len(shapes) == 1:
        return f"auto ({rows[0]['backend_used']})"
    parts = [f"{backend}: {' '.join(names)}" for backend, names in shapes.items()]
    return f"auto ({', '.join(parts)})"
