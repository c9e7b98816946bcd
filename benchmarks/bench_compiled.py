"""What a position encoding costs in torch.compile, with tiles and without.

python benchmarks/bench_compiled.py [--cells "swin @ 1024"] [--backward]

Ratios to compiled plain SDPA of the better of the stock backends and of `tiled`, their memory over
that of plain SDPA, and the ratio of the two. Interleaved pairs, one thread and process time.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from posenc.bench.cases import SHAPES, inputs, parse_case
from posenc.bench.contenders import Encoded, Plain
from posenc.bench.memory import peak_bytes
from posenc.bench.passes import inference, training
from posenc.bench.timing import paired_ratio

CPU = torch.device("cpu")
CELLS = [
    f"{label} @ {shape}"
    for label in ("swin", "irpe mode=bias", "irpe", "irpe on=qkv")
    for shape in ("vit-s-224", "vit-b-384", "1024")
]
STOCK = ("reference", "sdpa")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    print("| encoding | shape | stock | `tiled` | memory | `tiled` over stock |")
    print("| --- | --- | --- | --- | --- | --- |")
    for cell in args.cells:
        print(row(cell, args), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="ENCODING @ SHAPE")
    parser.add_argument("--backward", action="store_true", help="a training step of the call")
    parser.add_argument("--pairs", type=int, default=15)
    return parser.parse_args()


def row(cell: str, args: argparse.Namespace) -> str:
    """Of the better stock backend, and of tiles."""
    label, name = cell.split(" @ ")
    shape, case = SHAPES[name], parse_case(label)
    torch.compiler.reset()
    torch.manual_seed(0)
    tensors, encoding = inputs(shape, CPU, torch.float32), case.build(shape, CPU)
    run = training if args.backward else inference

    def compiled(module: nn.Module) -> object:
        return run(torch.compile(module, fullgraph=True, dynamic=False), tensors)

    plain = compiled(Plain())
    names = STOCK[:1] if "v" in str(case.options.get("on")) else STOCK
    stock = [compiled(Encoded(encoding, shape.layout, backend)) for backend in names]
    tiles = compiled(Encoded(encoding, shape.layout, "tiled"))
    ratios = [paired_ratio(plain, one, CPU, args.pairs) for one in stock]
    best = min(range(len(stock)), key=lambda at: ratios[at].median)
    ours = paired_ratio(plain, tiles, CPU, args.pairs)
    direct = paired_ratio(stock[best], tiles, CPU, args.pairs)
    base, theirs, own = (peak_bytes(one, CPU) for one in (plain, stock[best], tiles))
    memory = f"{theirs / base:.1f}x, {own / base:.1f}x"
    return f"| `{label}` | {name} | {ratios[best]} ({names[best]}) | {ours} | {memory} | {direct} |"


if __name__ == "__main__":
    main()
