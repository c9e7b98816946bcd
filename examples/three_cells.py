"""Which encodings know where things are? The three-cell test, in about two minutes.

    python examples/three_cells.py
    python examples/three_cells.py --encodings none learned rope --seed 1

Images are black but for a red, a green and a blue cell. The class is whether red is above green,
and whether red is left of blue: 25 % is chance, and all that a model without positions can reach.
An encoding that knows distances alone, or the nearest neighbors alone, cannot tell left from right.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from which.cells import probe
from which.contenders import CONTENDERS


def main() -> None:
    """Prints a line for each encoding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--encodings", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="NAME"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
        found = pool.map(partial(probe, seed=args.seed), args.encodings)
        for encoding, (right, total) in zip(args.encodings, found, strict=True):
            print(f"{encoding:14} {100 * right / total:5.1f} %", flush=True)


if __name__ == "__main__":
    main()
