"""What a patched model costs: ViT-S/16 with an encoding, as a ratio to the same model without.

python benchmarks/bench_model.py [--model vit_small_patch16_224] [--encodings swin] [--backward]

"nothing" is an encoding without terms: what being patched costs by itself.
Forward in eval without gradients, or with --backward a training step (forward and backward, without
an optimizer); interleaved pairs, one thread and process time on the CPU; and the time of
`import posenc` beyond `import torch`, each in a new process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import timm
import torch
from timing import environment, paired_ratio
from torch import Tensor, nn

import posenc


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = timm.create_model(args.model).eval().to(device)
    x = torch.randn(args.batch, 3, *plain.patch_embed.img_size, device=device)
    run = training_step if args.backward else forward
    rows = {}
    for encoding in args.encodings:
        patched = patched_copy(plain, encoding)
        ratio = paired_ratio(run(plain, x), run(patched, x), device, args.pairs)
        rows[encoding] = vars(ratio)
        print(f"{args.model} + {encoding}: {ratio} x the unpatched model", flush=True)
    seconds = import_seconds()
    print(f"import posenc: {seconds:.3f} s beyond torch")
    report = {
        "command": " ".join(["python", "benchmarks/bench_model.py", *sys.argv[1:]]),
        "model": args.model,
        "batch": args.batch,
        "pass": "forward and backward, training" if args.backward else "forward, eval, no grad",
        **environment(device),
        "ratios_to_unpatched": rows,
        "import_seconds_beyond_torch": seconds,
    }
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--encodings", nargs="+", default=["nothing", *posenc.list_encodings()])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backward", action="store_true", help="a training step")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def patched_copy(model: nn.Module, encoding: str) -> nn.Module:
    """The same weights with an encoding that is not zero."""
    copy = deepcopy(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some change the model: that is the point
        posenc.patch_model(copy, Nothing if encoding == "nothing" else encoding)
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(copy):
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return copy


class Nothing(posenc.AttentionEncoding):
    """No terms."""

    def terms(self, q: Tensor, k: Tensor, layout: posenc.TokenLayout, scale: float) -> tuple:
        """None at all."""
        return ()


def forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    model.eval()

    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def training_step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    model.train()
    parameters = list(model.parameters())

    def run() -> object:
        return torch.autograd.grad(model(x).sum(), parameters)

    return run


def import_seconds(runs: int = 5) -> float:
    """Median process time of `import posenc` after `import torch`, each in a new process."""
    code = (
        "import time, torch; start = time.process_time(); import posenc; "
        "print(time.process_time() - start)"
    )
    command = [sys.executable, "-c", code]
    outputs = [subprocess.run(command, check=True, capture_output=True) for _ in range(runs)]
    return statistics.median(float(output.stdout) for output in outputs)


if __name__ == "__main__":
    main()
