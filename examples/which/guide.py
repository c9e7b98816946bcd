"""The questions that people have, each with what was measured and how sure it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from which.measures import MEASURES, Standing, standings
from which.results import Records

SLOWER = 1.10  # times the training of the model without positions is "no time lost"


@dataclass(frozen=True)
class Question:
    """What a reader comes with, and the measure that answers it."""

    asked: str
    measure: str
    limits: str
    cheap_only: bool = False


QUESTIONS = (
    Question("Your classifier reads the CLS token", "CLS", "one small model, one size of images"),
    Question(
        "Your classifier reads the mean of the tokens",
        "mean",
        "one small model, one size of images",
    ),
    Question(
        "You change the resolution, up to 3 times",
        "1.5x to 3x",
        "both readouts; images of Fashion-MNIST are interpolated: larger ones show no more detail",
    ),
    Question(
        "You change it much more, 4.57 times",
        "4.57x",
        "both readouts; few test images; as from 224 to 1,024 pixels",
    ),
    Question("You have rectangles", "rectangles", "both readouts; trained on squares only"),
    Question(
        "Things are not where they were in training", "moved", "both readouts; shift and crop"
    ),
    Question("You have few images", "1/8 of the data", "mean token; six encodings and none"),
    Question(
        "You keep the model's learned table", "beside a table", "mean token; a new table, from zero"
    ),
    Question(
        "You must not slow down training",
        "mean",
        f"those whose step takes at most {SLOWER:.2f} times that without positions, on this device",
        cheap_only=True,
    ),
)


@dataclass(frozen=True)
class Answer:
    """To one question.

    Attributes:
        question: asked.
        best: encodings that the resamplings do not tell from the best, the best first.
        standing: of each encoding that was compared.
    """

    question: Question
    best: tuple[str, ...]
    standing: dict[str, Standing]

    @property
    def take(self) -> str:
        """In a word or a few."""
        if len(self.best) == len(self.standing):
            return "any: no difference was seen"
        first, *rivals = self.best
        return f"`{first}`" if not rivals else f"`{first}`, or {_names(rivals[:3])}"

    @property
    def evidence(self) -> str:
        """With numbers."""
        first = self.standing[self.best[0]]
        said = f"{first.mean:.1f} % ({first.low:.1f} to {first.high:.1f})"
        beaten = [name for name in self.standing if name not in self.best]
        if beaten:
            next_one = self.standing[beaten[0]]
            said += f"; the first clearly behind: `{beaten[0]}` with {next_one.mean:.1f} %"
        if "none" in self.standing:
            said += f"; without positions {self.standing['none'].mean:.1f} %"
        return said

    @property
    def certainty(self) -> str:
        """Whether the best is known, in words."""
        seeds = min(self.standing[name].seeds for name in self.standing)
        if seeds < 2:
            return "unsure: encodings with a single seed, whose chance is not known"
        if len(self.best) == 1:
            return "sure here: each other is behind it in 97.5 % of resamplings"
        return f"unsure: {len(self.best)} of {len(self.standing)} may be the best"


def answers(records: Records) -> list[Answer]:
    """Of the questions for which something was measured."""
    found = []
    for question in QUESTIONS:
        standing = standings(records, MEASURES[question.measure])
        if question.cheap_only:
            cheap = cheap_encodings(records)
            standing = standings(
                {job: record for job, record in records.items() if job.encoding in cheap},
                MEASURES[question.measure],
            )
        if len(standing) > 1:
            best = tuple(name for name, one in standing.items() if one.may_be_best)
            found.append(Answer(question, best, standing))
    return found


def cheap_encodings(records: Records) -> set[str]:
    """Whose training step costs little more than that without positions."""
    return {
        job.encoding
        for job, record in records.items()
        if job.part == "cost" and record["training"]["median"] <= SLOWER
    }


def rows(found: Iterable[Answer]) -> list[dict[str, str]]:
    """For guide.json, from which the README's table is made."""
    return [
        {"question": one.question.asked, "take": one.take, "certainty": one.certainty}
        for one in found
    ]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
