"""The README's measured sentences, each number from the file that a benchmark left."""

from __future__ import annotations

import statistics

from reports import accuracy, model_ratio, people, ratio

import posenc
from posenc.cli.listing import describe

FORWARD, TRAINING = "attention_cpu.json", "attention_cpu_training.json"
TIMM = "peer: timm RelPosBias"
FLEX = (
    'no gradient on the CPU (`NotImplementedError`); by `backend="flex"`: no value tables, no '
    "dropout, no float64, no heads narrower than 16"
)
POOLS = "CLS", "mean"
HERE = "every encoding and its gradients on the CPU; on a GPU neither is measured"


def which_lines() -> str:
    """Which encoding when, as far as it was measured."""
    names = posenc.list_encodings()
    silent = [name for name in names if describe(name).starts == "without effect"]
    cls = {name: f"{row['CLS']:.0f} %" for name, row in accuracy().items()}
    mean = {name: f"{row['mean']:.0f} %" for name, row in accuracy().items()}
    model = {name: f"{model_ratio('model_cpu.json', name):.2f}" for name in ("swin", "irpe")}
    return "\n".join(
        (
            f"- **A pretrained model**: one of the {len(silent)} of {len(names)} that start "
            "without effect, such as `swin` or `irpe`.",
            f"- **From scratch, read from CLS**: `peg` ({cls['peg']} of digits) or `learned` "
            f"({cls['learned']}); `swin` has {cls['swin']}, no position {cls['none']}.",
            f"- **From scratch, read from the mean token**: also `swin` ({mean['swin']}) or `irpe` "
            f"({mean['irpe']}), beside `peg` ({mean['peg']}) and `learned` ({mean['learned']}).",
            f"- **Little time**: `swin` costs {model['swin']} of a ViT-S/16 in inference, `irpe`, "
            f"which reads the content, {model['irpe']}.",
        )
    )


def people_line() -> str:
    """What knowing the body gives where people are recognized."""
    found = people()
    without, table, body, both = map(reached, ("none", "learned", "body", "body+human_part"))
    gains = {
        pool: found.difference("body+human_part", "learned", pool, "as trained") for pool in POOLS
    }
    said = [
        f"{gain.mean:+.1f} {{}} (95 % interval {gain.interval[0]:+.1f} to {gain.interval[1]:+.1f})"
        for gain in gains.values()
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
