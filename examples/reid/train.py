"""Trains a ViT for person re-identification and evaluates it.

    python examples/reid/train.py runs/small --data demo/pedestrians
    accelerate launch --num-processes 4 examples/reid/train.py runs/market --data Market-1501 ...

An interrupted training goes on from its last checkpoint when the same command is given again.
"""

from __future__ import annotations

from pathlib import Path

try:
    from data.market import read_dataset
    from options import Parser, add_data, add_fields, command
    from training.config import Config, parse
    from training.run import train
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[reid]"') from None


def main() -> None:
    """Reads the options, trains, prints the scores."""
    parser = Parser(__doc__)
    parser.add_argument("out", type=Path, help="folder of this training")
    add_data(parser)
    add_fields(parser, Config)
    args, config = parse(parser)
    train(config, read_dataset(args.data, args.kind), args.out)


if __name__ == "__main__":
    command(main, "the same command goes on from the last checkpoint, if there is one")
