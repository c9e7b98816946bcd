"""The README's measured sentences, each number from the file that a benchmark left."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from reports import model_ratio, people, ratio, which_guide

import posenc
from posenc.cli.listing import describe

if TYPE_CHECKING:
    from findings.results import Difference

FORWARD, TRAINING = "attention_cpu.json", "attention_cpu_training.json"
TIMM = "peer: timm RelPosBias"
FLEX = (
    'no gradient on the CPU (`NotImplementedError`); by `backend="flex"`: no value tables, no '
    "dropout, no float64, no heads narrower than 16"
)
POOLS = "CLS", "mean"
QUESTIONS = (  # of those that the comparison answers
    "Your classifier reads the CLS token",
    "Your classifier reads the mean of the tokens",
    "You change the resolution, up to 3 times",
    "You have rectangles",
    "You have few images",
    "You must not slow down training",
)
HERE = "every encoding and its gradients on the CPU; on a GPU neither is measured"


def which_table() -> str:
    """Which encoding when, as `examples/which_encoding.py` found it, and how sure that is."""
    names = posenc.list_encodings()
    silent = [name for name in names if describe(name).starts == "without effect"]
    pretrained = (
        f"one of the {len(silent)} of {len(names)} that start without effect, such as `swin`"
    )
    guide = {row["question"]: [row["take"], row["certainty"]] for row in which_guide()}
    rows = [
        ["when", "take", "how sure"],
        ["---"] * 3,
        ["You have a pretrained model", pretrained, "sure: tested for each"],
        *([question, *guide[question]] for question in QUESTIONS),
        ["You recognize upright people", "`body+human_part`", people_certainty()],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def people_gains() -> list[Difference]:
    """Points of mAP of `body+human_part` over the learned table, with CLS and with the mean."""
    return [people().difference("body+human_part", "learned", pool, "as trained") for pool in POOLS]


def people_certainty() -> str:
    """With each readout: sure where the interval leaves 0 out."""
    said = []
    for pool, gain in zip(("CLS", "the mean token"), people_gains(), strict=True):
        low, high = gain.interval
        sure = "sure" if low > 0 else "unsure"
        points = f"{gain.mean:+.1f} mAP on `learned` ({low:+.1f} to {high:+.1f})"
        said.append(f"{sure} with {pool}: {points}")
    return "; ".join(said)


def people_line() -> str:
    """What knowing the body gives where people are recognized."""
    without, table, body, both = map(reached, ("none", "learned", "body", "body+human_part"))
    said = [
        f"{gain.mean:+.1f} {{}} (95 % interval {gain.interval[0]:+.1f} to {gain.interval[1]:+.1f})"
        for gain in people_gains()
    ]
    return (
        "- **Upright people**: on synthetic pedestrians a small ViT reaches "
        f"{without} mAP without positions, {table} with the learned table, {body} with `body`, "
        f"{both} with `body+human_part`: {said[0].format('points on the table with CLS')}, "
        f"{said[1].format('with the mean token')}."
    )


def reached(encoding: str) -> str:
    """Percent of mAP as trained, from the lower to the higher of both readouts."""
    found = people()
    means = [statistics.mean(found.of_test(encoding, pool, "as trained")) for pool in POOLS]
    return f"{min(means):.0f} to {max(means):.0f} %"


def ratio_lines() -> str:
    """What it costs, in three lines."""
    swin = [model_ratio(f"model_cpu{kind}.json", "swin") for kind in ("", "_training")]
    irpe = ratio(FORWARD, "irpe", "vit-b-384"), ratio(FORWARD, "peer: official iRPE k", "vit-b-384")
    memory = [ratio(TRAINING, case, "1024", "memory_ratio") for case in ("swin", TIMM)]
    return (
        f"- **{swin[0]:.2f}** in inference and {swin[1]:.2f} in training: a ViT-S/16 at 224 pixels "
        "with `swin`, over the same without.\n"
        f"- **{irpe[0]:.2f}**, where the official code takes {irpe[1]:.2f}: attention with "
        "contextual iRPE, 24x24 patches, over plain attention.\n"
        f"- **{memory[0]:.1f}** times the memory, where timm's bias takes {memory[1]:.1f}: "
        "training `swin`, 32x32 patches, over plain attention."
    )


def instead_table() -> str:
    """What else there is, and what it does where posenc was measured beside it."""
    rows = [
        ["instead of", "there", "here"],
        ["---"] * 3,
        ["timm's `RelPosBias`", static_bias(TIMM), f"`swin`: {static_bias('swin')}"],
        ["FlexAttention", FLEX, HERE],
        ["the official iRPE", on_qkv("peer: official iRPE qkv"), on_qkv("irpe on=qkv")],
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def static_bias(case: str) -> str:
    """At 24x24 patches in inference, and at 32x32 in training."""
    return f"{cost(FORWARD, case, 'vit-b-384')}; in training {cost(TRAINING, case, '1024')}"


def on_qkv(case: str) -> str:
    """The same."""
    return f"on q, k and v: {static_bias(case)}"


def cost(report: str, case: str, shape: str) -> str:
    """Time and memory, over those of plain attention."""
    memory = ratio(report, case, shape, "memory_ratio")
    return f"{ratio(report, case, shape):.2f} time, {memory:.1f} memory"
