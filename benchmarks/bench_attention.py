"""What a position encoding costs: attention with it, as a ratio to plain SDPA.

    python benchmarks/bench_attention.py [--encodings irpe "irpe on=qk"] [--backward]

Each ratio is measured against `F.scaled_dot_product_attention` of the same shape in the same run
(median of interleaved pairs and their quartiles; on the CPU one thread and process time). Memory is
the peak of the allocator over that of plain SDPA. A case whose output or gradients disagree with
the definition in float64 prints no number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from cases import CPU_SHAPES, ENCODINGS, GPU_SHAPES, SHAPES, Case, all_cases, parse_case
from check import TOLERANCE
from contenders import Contender, Ours, expand_backends
from measure import Roof, Setting, head, measure
from peers import find_official, peers_of
from table import markdown
from timing import environment, measured_bandwidth, measured_ceiling

from posenc.attention.api import BACKENDS

try:
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[bench]"') from None

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in TOLERANCE}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.device.type == "cpu":
        torch.set_num_threads(1)
    report = measure_all(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    title = "{pass}, {dtype}, {device}, torch {torch}".format(**report)
    rows = report["ratios_to_plain_sdpa"]
    if args.plot:
        import plot  # only here: matplotlib is slow to import

        plot.draw(rows, title, args.plot)
    print(f"{title}\n\n{markdown(rows)}")


def measure_all(args: argparse.Namespace) -> dict:
    """The report: every row of the table at every shape, and what they depend on."""
    roof = None
    if args.device.type != "cpu":
        ceiling = measured_ceiling(args.device, args.dtype)
        roof = Roof(ceiling, measured_bandwidth(args.device))
    setting = Setting(args.device, args.dtype, args.backward, args.pairs, roof)
    contenders = [one for case in args.encodings for one in rows_of(case, args)]
    cells = [(contender, name) for contender in contenders for name in args.shapes]
    rows = []
    for contender, name in (progress := tqdm(cells, unit="cell")):
        progress.set_description(f"{contender.case}, {contender.backend}, {name}")
        shape = SHAPES[name].scaled(args.batch, args.device)
        rows.append({**head(contender, name, shape), **measure(contender, shape, setting)})
    return {
        "command": shlex.join(["python", "benchmarks/bench_attention.py", *args.given]),
        "pass": "forward and backward, training" if args.backward else "forward, eval, no grad",
        "dtype": str(args.dtype).removeprefix("torch."),
        "roof_tflops": roof and roof.flops / 1e12,
        "roof_gbytes_per_s": roof and roof.bandwidth / 1e9,
        **environment(args.device),
        "ratios_to_plain_sdpa": rows,
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument(
        "--encodings",
        nargs="+",
        type=cases_argument,
        default=[[parse_case(label)] for label in ENCODINGS],
        metavar="LABEL",
        help='such as swin or "irpe on=qk mode=bias"; `all` is every encoding inside attention',
    )
    parser.add_argument(
        "--backends", nargs="+", default=["auto"], choices=["auto", "all", *BACKENDS]
    )
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES))
    parser.add_argument("--batch", type=int, help="instead of each shape's own")
    parser.add_argument("--backward", action="store_true", help="a training step of the call")
    parser.add_argument("--pairs", type=int, help="default: as many as fit into 3 s, at least 5")
    parser.add_argument(
        "--irpe-repo",
        type=Path,
        help="a clone of microsoft/Cream, to run the official iRPE beside ours; needs easydict",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(argv)
    args.given = sys.argv[1:] if argv is None else list(argv)
    args.dtype = DTYPES[args.dtype]
    args.encodings = list(itertools.chain.from_iterable(args.encodings))
    args.backends = expand_backends(args.backends)
    args.shapes = args.shapes or (CPU_SHAPES if args.device.type == "cpu" else GPU_SHAPES)
    if args.irpe_repo:
        find_official(args.irpe_repo)  # complains now, not after minutes
    return args


def cases_argument(label: str) -> list[Case]:
    try:
        return all_cases() if label == "all" else [parse_case(label)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def rows_of(case: Case, args: argparse.Namespace) -> list[Contender]:
    """One encoding by each backend, then what others have to compare with it."""
    ours = [Ours(case, backend) for backend in args.backends]
    return [*ours, *peers_of(case, args.irpe_repo)]


if __name__ == "__main__":
    main()
