"""What a position encoding costs: attention with it, as a ratio to plain SDPA.

    python benchmarks/bench_attention.py [--encodings irpe swin] [--shapes vit-s-224] [--backward]

Each ratio is measured against `F.scaled_dot_product_attention` of the same shape in the same run
(median of interleaved pairs; on the CPU one thread and process time). A case whose output
disagrees with the reference backend prints no number.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import Ratio, environment, paired_ratio
from torch import Tensor, nn

import posenc

HEADS, HEAD_DIM = 6, 64
SHAPES = {  # batch, height, width, prefix
    "reid": (8, 16, 8, 1),
    "vit-s-224": (8, 14, 14, 1),
    "vit-s-384": (4, 24, 24, 1),
    "1024": (2, 32, 32, 1),
}
CASES: dict[str, dict[str, object]] = {
    "irpe": {},
    "irpe mode=bias": {"mode": "bias"},
    "irpe on=qkv": {"on": "qkv"},
    "irpe method=cross": {"method": "cross"},
    "swin": {},
    "quadratic": {},
    "human_part": {},
}


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    torch.manual_seed(0)
    if device.type == "cpu":
        torch.set_num_threads(1)
    rows = []
    print("case".ljust(22) + "".join(shape.rjust(22) for shape in args.shapes))
    for case in args.encodings:
        cells = [measure(case, shape, device, args) for shape in args.shapes]
        rows += [cell for cell in cells if cell]
        print(case.ljust(22) + "".join(text(cell).rjust(22) for cell in cells), flush=True)
    report = {
        "command": " ".join(["python", "benchmarks/bench_attention.py", *sys.argv[1:]]),
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "dtype": args.dtype,
        "pass": "forward and backward, training" if args.backward else "forward, eval, no grad",
        **environment(device),
        "ratios_to_plain_sdpa": rows,
    }
    print(json.dumps({k: v for k, v in report.items() if k != "ratios_to_plain_sdpa"}, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--encodings", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(
    case: str, shape: str, device: torch.device, args: argparse.Namespace
) -> dict[str, object] | None:
    """One row of the report, or None where the output is wrong."""
    batch, height, width, prefix = SHAPES[shape]
    layout = posenc.TokenLayout(height, width, prefix)
    encoding = make_encoding(case, layout, device)
    # As in a model: views of one packed projection.
    shape_of_packed = (batch, layout.num_tokens, 3, HEADS, HEAD_DIM)
    packed = torch.randn(shape_of_packed, device=device, dtype=getattr(torch, args.dtype))
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    if not agrees(encoding, layout, q, k, v, args.backend):
        return None
    encoding.train(args.backward)
    run = trained if args.backward else inferred

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def encoded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return posenc.attend(q, k, v, encoding(q, k, layout), backend=args.backend)

    ratio = paired_ratio(run(plain, q, k, v), run(encoded, q, k, v), device, args.pairs)
    return {"case": case, "shape": shape, "layout": str(layout), "batch": batch, **vars(ratio)}


def make_encoding(case: str, layout: posenc.TokenLayout, device: torch.device) -> nn.Module:
    name = case.split()[0]
    encoding = posenc.create_encoding(
        name, layout=layout, num_heads=HEADS, head_dim=HEAD_DIM, device=device, **CASES[case]
    )
    with torch.no_grad():  # tables of zeros would hide a wrong result
        for parameter in encoding.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return encoding


def agrees(
    encoding: nn.Module,
    layout: posenc.TokenLayout,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    backend: str,
) -> bool:
    """Whether the output equals the reference backend's in float64."""
    with torch.no_grad():
        out = posenc.attend(q, k, v, encoding(q, k, layout), backend=backend)
        exact = encoding.to(torch.float64)
        q, k, v = q.double(), k.double(), v.double()
        expected = posenc.attend(q, k, v, exact(q, k, layout), backend="reference")
    encoding.to(torch.float32)
    tolerance = 1e-4 if out.dtype == torch.float32 else 3e-2
    return torch.allclose(out.double(), expected, atol=tolerance, rtol=tolerance)


def inferred(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return function(*inputs)

    return run


def trained(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]

    def run() -> object:
        return function(*leaves).sum().backward()

    return run


def text(cell: dict[str, object] | None) -> str:
    if cell is None:
        return "wrong output"
    return str(Ratio(cell["median"], cell["low"], cell["high"]))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
