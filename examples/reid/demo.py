"""Draws pedestrians, trains on them, and shows what was learned: all in one command.

    python examples/reid/demo.py --out demo

Under three minutes on two CPU cores. Writes the pictures and reid.json to --out, the data and the
training to its folders pedestrians/ and reid/; what is there already is used.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch

try:
    import pictures
    from data.market import read_dataset
    from floors import floors
    from generate import Recipe, write
    from options import Parser, RefusedError, add_fields, command, read_fields
    from search.features import describe, summarize
    from training.config import Config
    from training.run import train
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None

# Of what is left to 1 above the best floor, which is pixels. Street people reached 55, 58 and
# 70 % (seeds 0, 1, 2), toy people 55 %. The rest is room for other seeds, versions and machines.
EXPECTED = 1 / 3


def main() -> None:
    """Draws, trains, evaluates, draws."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of all of it")
    parser.add_argument("--epochs", type=int, default=Config.epochs, help="of the training")
    add_fields(parser, Recipe, only=("train_people", "test_people", "wardrobe"))
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="of people and training")
    args = parser.parse_args()
    started = time.perf_counter()
    folder, run = args.out / "pedestrians", args.out / "reid"
    recipe = read_fields(Recipe, args)
    write(folder, recipe)
    data = read_dataset(folder)
    # A core reads photos while the others train: on two cores faster than both in turns.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    config = Config(epochs=args.epochs, workers=1, seed=args.seed)
    reached = floors(data, config)
    trained = train(config, data, run)
    for name, scores in reached.items():
        print(f"floor, {name}: {describe(scores)}")
    print(f"trained, {config.encoding}: {describe(trained)}")
    floor = max(scores.mean_average_precision for scores in reached.values())
    share = (trained.mean_average_precision - floor) / (1 - floor)
    print(f"above the best floor by {share:.0%} of what is left to 1")
    report = {name: summarize(scores) for name, scores in {**reached, "trained": trained}.items()}
    (args.out / "reid.json").write_text(json.dumps(report, indent=2) + "\n")
    for path in pictures.draw(pictures.open_album(run, data), args.out):
        print(path)
    print(f"{time.perf_counter() - started:.0f} s")
    if config.epochs >= Config.epochs and recipe.train_people >= Recipe.train_people:
        check_margin(share)


def check_margin(share: float) -> None:
    """Of the demo's own settings.

    Raises:
        RefusedError: something in the example has become worse.
    """
    if share < EXPECTED:
        raise RefusedError(
            f"the training is above the best floor by only {share:.0%} of what is left to 1; these "
            f"settings reach at least {EXPECTED:.0%}"
        )


if __name__ == "__main__":
    command(main, "the same command goes on from the last checkpoint, if there is one")
