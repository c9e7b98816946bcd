"""Patches every configuration of the installed timm on the meta device; writes docs/coverage.md.

python docs/coverage.py            # all, as `make sweep` does
python docs/coverage.py beit vitamin --encodings irpe
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import pathlib
import warnings
from collections import Counter
from dataclasses import dataclass

import timm
import torch
from timm.models import list_models

import posenc

GLOBAL = (
    "vision_transformer",
    "eva",
    "deit",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "naflexvit",
    "vitamin",
    "qwen3_vit",
    "beit",
    "gemma4_vit",
    "vision_transformer_sam",
    "deepseek_vit",
)
ENCODINGS = ("irpe", "swin", "quadratic", "human_part")


@dataclass(frozen=True)
class Result:
    """What became of one configuration."""

    module: str
    name: str
    layouts: str = ""
    error: str = ""


def main() -> None:
    """Runs the sweep and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", default=list(GLOBAL))
    parser.add_argument("--encodings", nargs="+", default=list(ENCODINGS))
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    work = [(module, name) for module in options.modules for name in list_models(module=module)]
    run = functools.partial(try_model, encodings=tuple(options.encodings))
    results = []
    with multiprocessing.Pool(2) as pool:
        for result in pool.imap_unordered(run, work, chunksize=4):
            results.append(result)
            if result.error:
                print(f"{result.name}: {result.error}", flush=True)
    good = sum(not result.error for result in results)
    print(f"{good} of {len(results)}")


def try_model(model: tuple[str, str], encodings: tuple[str, ...]) -> Result:
    """Creates one model on meta, then patches, runs and unpatches it with each encoding."""
    module, name = model
    warnings.simplefilter("ignore")
    try:
        with torch.device("meta"):
            vit = timm.create_model(name).eval()
            image = torch.zeros(1, *vit.pretrained_cfg["input_size"])
        with torch.no_grad():
            shape = vit(image).shape
            for encoding in encodings:
                posenc.patch_model(vit, encoding)
                if vit(image).shape != shape:
                    raise ValueError(f"{encoding}: another output shape")
                layouts = layouts_of(vit)
                posenc.unpatch_model(vit)
    except Exception as error:  # noqa: BLE001, every failure is a row
        return Result(module, name, error=f"{type(error).__name__}: {error}")
    return Result(module, name, layouts)


def layouts_of(vit: torch.nn.Module) -> str:
    """Layouts of the patched attention modules, with how many have each."""
    found = Counter(
        str(site.layout.at_rest())
        for module in vit.modules()
        if (site := getattr(module, "_posenc", None)) is not None and site.attention
    )
    return ", ".join(f"{layout} ({count})" for layout, count in found.items())


if __name__ == "__main__":
    main()
