"""What papers claim, beside the same difference here."""

from __future__ import annotations

from dataclasses import dataclass

from which.measures import MEASURES, Measure, difference, standings
from which.results import Records

BESIDE = MEASURES["beside a table"]
MEAN = MEASURES["mean"]


@dataclass(frozen=True)
class Claim:
    """One encoding is better than another by so many points.

    Attributes:
        text: the paper's finding, with its numbers.
        source: where it says so.
        points: the paper's difference, first less second; None where it gives none.
        first: measure and encoding here.
        second: the same.
    """

    text: str
    source: str
    points: float
    first: tuple[Measure, str]
    second: tuple[Measure, str]


def _same(name: str, first: str, second: str) -> dict[str, tuple[Measure, str]]:
    measure = MEASURES[name]
    return {"first": (measure, first), "second": (measure, second)}


CLAIMS = (
    Claim(
        "FIRE keeps 63.1 % where rotary falls to 18.9 % (ViT-Ti, ImageNet-100, 224 to 1,024)",
        "TMLR submission 9150",
        44.2,
        **_same("4.57x", "fire_2d", "rope"),
    ),
    Claim(
        "LookHere is 21.7 points above 2-D rotary at 1,024 pixels",
        "Fuller et al. 2024, arXiv 2405.13985",
        21.7,
        **_same("4.57x", "lookhere", "rope"),
    ),
    Claim(
        "PaPE gains up to 10.5 points over the next best at larger images",
        "Øhrstrøm et al. 2026, arXiv 2602.01418",
        10.5,
        **_same("4.57x", "pape", "lookhere"),
    ),
    Claim(
        "rotary with mixed axes is 1.6 points above a learned table, 224 to 384 "
        "(84.4 and 82.8, DeiT-III-B)",
        "Heo et al. 2024, arXiv 2403.13298",
        1.6,
        **_same("1.5x to 3x", "rope_mixed", "learned"),
    ),
    Claim(
        "PEG is 0.2 points above a learned table, with CLS (72.4 and 72.2, DeiT-Ti)",
        "Chu et al. 2021, arXiv 2102.10882",
        0.2,
        **_same("CLS", "peg", "learned"),
    ),
    Claim(
        "a learned table is 4.0 points above none, with CLS (72.2 and 68.2, DeiT-Ti)",
        "Chu et al. 2021, arXiv 2102.10882",
        4.0,
        **_same("CLS", "learned", "none"),
    ),
    Claim(
        "Swin's bias is 0.8 points above an absolute table (81.3 and 80.5, Swin-T)",
        "Liu et al. 2021, arXiv 2103.14030, table 4",
        0.8,
        **_same("mean", "swin", "learned"),
    ),
    Claim(
        "iRPE beside the learned table adds 1.0 point (80.9 and 79.9, DeiT-S)",
        "Wu et al. 2021, arXiv 2107.14222, table 4",
        1.0,
        first=(BESIDE, "irpe"),
        second=(MEAN, "learned"),
    ),
    Claim(
        "the three-cell test tells positions from none by 30 to 35 points",
        "Chowdhury et al. 2025, arXiv 2504.14386",
        30.0,
        **_same("three cells", "learned", "none"),
    ),
)


def verdicts(records: Records) -> list[tuple[Claim, tuple[float, float, float], str]]:
    """Of each claim whose two sides were measured: the difference here, its interval, a word."""
    found = []
    for claim in CLAIMS:
        here = difference(records, claim.first, claim.second)
        if here is not None:
            found.append((claim, here, verdict(claim.points, here)))
    return found


def verdict(points: float, here: tuple[float, float, float]) -> str:
    """Whether the direction is the paper's, where the interval says one."""
    _, low, high = here
    if low <= 0 <= high:
        return "undecided here"
    return "same direction" if (low > 0) == (points > 0) else "**the contrary**"


def has_both_axes(records: Records, points: float = 25.0) -> tuple[list[str], list[str]]:
    """Encodings that are so many points above none in the three-cell test, and the others."""
    found = standings(records, MEASURES["three cells"])
    none = found.get("none")
    if none is None:
        return [], []
    above = [name for name, one in found.items() if one.mean >= none.mean + points]
    return above, [name for name in found if name not in above and name != "none"]
