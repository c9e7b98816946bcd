"""What `auto` chooses, next to what the ratios found to be fastest."""

from __future__ import annotations

from collections import defaultdict

import torch
from cases import Shape, inputs, parse_case
from contenders import Ours

import posenc
from gpu.part import Part, Row
from gpu.ratios import DRY_SHAPES, SHAPES, of_run
from posenc.attention.api import BACKENDS

TOLERATED = 1.05  # of the fastest: no rule is worth less


def run(part: Part) -> None:
    """A row for each encoding, shape and pass with at least one measured backend."""
    shapes = DRY_SHAPES if part.dry else SHAPES
    measured = by_backend(part.read("ratios").get("rows", []))
    for key in part.each(measured, lambda key: ", ".join(key)):
        case, shape, timed = key
        choice, why = chosen(case, shapes[shape], timed == "training", part.dry)
        part.add(row_of(key, choice, why, measured[key]))


def by_backend(rows: list[Row]) -> dict[tuple[str, str, str], dict[str, float]]:
    """(case, shape, pass) -> milliseconds by backend."""
    measured: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        is_ours = not row["deterministic"] and row["backend"] in BACKENDS
        if is_ours and row.get("milliseconds") is not None:
            key = row["case"], row["shape"], row["pass"]
            measured[key][row["backend"]] = row["milliseconds"]
    return dict(measured)


def chosen(case: str, shape: Shape, backward: bool, dry: bool) -> tuple[str, str]:
    """(backend, why), in the pass that was timed."""
    device, dtype = of_run(dry)
    tensors = [x.detach().requires_grad_(backward) for x in inputs(shape, device, dtype)]
    module, _ = Ours(parse_case(case), "auto").build(shape, device, dtype)
    module.train(backward)
    with torch.set_grad_enabled(backward):
        explanation = posenc.explain(*tensors, module.encoding(*tensors[:2], shape.layout))
    return explanation.choice, explanation.why


def row_of(key: tuple[str, str, str], choice: str, why: str, measured: dict[str, float]) -> Row:
    """The choice, the fastest, and whether a rule is wrong; None where the choice has no time."""
    best = min(measured, key=lambda backend: measured[backend])
    own = measured.get(choice)
    loss = None if own is None else own / measured[best]
    return {
        **dict(zip(("case", "shape", "pass"), key, strict=True)),
        "choice": choice,
        "why": why,
        "fastest": best,
        "times_the_fastest": loss,
        "is_right": None if loss is None else loss <= TOLERATED,
        "milliseconds": measured,
    }
