"""Patches every transformer of the installed timm on the meta device; writes docs/coverage.md.

python docs/sweep.py                   # all, as `make sweep` does: about ten minutes
python docs/sweep.py beit nest davit   # some timm modules, nothing is written
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pathlib
import sys
import warnings
from collections import Counter
from dataclasses import dataclass

import timm
import torch
from timm.models import list_models

import posenc
from posenc.patching.models.timm import GLOBAL_FAMILIES, REFUSED, STAGED_FAMILIES

try:
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[bench]"') from None

OUT = pathlib.Path(__file__).with_name("coverage.md")
ENCODINGS = ("irpe", "swin", "quadratic", "human_part")
NO_ATTENTION = "no attention"
# timm modules that build models of a class that another module defines.
BUILDERS = ("deit", "vision_transformer_hybrid", "vitamin")


@dataclass(frozen=True)
class Result:
    """What became of one configuration.

    Args:
        module: timm module.
        name: of the configuration.
        attention: classes of the attention modules that were patched.
        layouts: what they see, with how many see it; "no attention" for the configurations of a
            family that have none, which are not counted.
        left_alone: why attention modules were passed over.
        error: why nothing worked.
    """

    module: str
    name: str
    attention: tuple[str, ...] = ()
    layouts: str = ""
    left_alone: tuple[str, ...] = ()
    error: str = ""


def main() -> None:
    """Runs the sweep, prints the counts and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*")
    chosen = parser.parse_args().modules
    groups = {"global": global_modules(), "staged": modules_of(STAGED_FAMILIES)}
    results = {}
    for group, modules in groups.items():
        wanted = [module for module in modules if not chosen or module in chosen]
        results[group] = sweep([(m, name) for m in wanted for name in list_models(module=m)])
        print(f"{group}: {count(results[group])}", flush=True)
    refused = {} if chosen else refusals()
    for name, reason in refused.items():
        print(f"refused: {name}: {reason}")
    if not chosen:
        OUT.write_text(page(results, refused))
    sys.exit(any(result.error for group in results.values() for result in group))


def global_modules() -> list[str]:
    """Timm modules whose models have one grid for all blocks."""
    return sorted({*modules_of(GLOBAL_FAMILIES), *BUILDERS})


def modules_of(families) -> list[str]:
    """Timm modules that define these families."""
    return [family.path.partition(":")[0].rpartition(".")[2] for family in families]


def sweep(work: list[tuple[str, str]]) -> list[Result]:
    """All configurations, one process per core."""
    with multiprocessing.Pool(os.cpu_count()) as pool:
        runs = pool.imap_unordered(try_model, work, chunksize=2)
        results = list(tqdm(runs, total=len(work), disable=None))
    for result in results:
        if result.error:
            print(f"{result.name}: {result.error}", flush=True)
    return sorted(results, key=lambda result: (result.module, result.name))


def try_model(model: tuple[str, str]) -> Result:
    """Creates one model on meta, then patches, runs and unpatches it with each encoding."""
    module, name = model
    warnings.simplefilter("ignore")
    try:
        vit, image = create(name)
        if is_without_attention(vit):
            return Result(module, name, layouts=NO_ATTENTION)
        with torch.no_grad():
            shape = shape_of(vit(image))
            for encoding in ENCODINGS:
                posenc.patch_model(vit, encoding)
                if shape_of(vit(image)) != shape:
                    raise ValueError(f"{encoding} gives another output shape")
                posenc.unpatch_model(vit)
        return describe(module, name, vit)
    except Exception as error:
        return Result(module, name, error=f"{type(error).__name__}: {error}")


def is_without_attention(vit: torch.nn.Module) -> bool:
    """Whether a model of a known family is purely convolutional."""
    report = posenc.supports(vit)
    known = not report.reason.startswith("found no model")
    fused = any(hasattr(part, "fused_attn") for part in vit.modules())
    return known and not fused and not report.sites  # Swin V2 writes its attention out


def create(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model without weights, and an image of its size."""
    with torch.device("meta"):
        vit = timm.create_model(name).eval()
        # Of the model rather than of its pretrained weights, where the two differ.
        size = getattr(getattr(vit, "patch_embed", None), "img_size", None)
        size = size if isinstance(size, tuple) else vit.pretrained_cfg["input_size"][1:]
        return vit, torch.zeros(1, vit.pretrained_cfg["input_size"][0], *size)


def shape_of(output) -> tuple:
    """Of a tensor or a tuple of them."""
    parts = output if isinstance(output, (tuple, list)) else [output]
    return tuple(tuple(part.shape) for part in parts)


def describe(module: str, name: str, vit: torch.nn.Module) -> Result:
    """What `supports` says of a model that works."""
    report = posenc.supports(vit)
    inside = dict(vit.named_modules())
    sites = [next(m for n, m in inside.items() if n.endswith(site)) for site in report.sites]
    counts = Counter(str(layout) for layout in report.layouts.values())
    return Result(
        module,
        name,
        attention=tuple(sorted({type(site).__name__ for site in sites})),
        layouts=", ".join(f"{layout} ({count})" for layout, count in counts.items()),
        left_alone=tuple(dict.fromkeys(report.left_alone.values())),
    )


def refusals() -> dict[str, str]:
    """A configuration of each module that is refused -> the reason that `supports` gives."""
    found = {}
    warnings.simplefilter("ignore")
    for module in dict.fromkeys(path.partition(":")[0].rpartition(".")[2] for path in REFUSED):
        if not list_models(module=module):
            continue
        name = list_models(module=module)[0]
        with torch.device("meta"):
            found[name] = posenc.supports(timm.create_model(name)).reason
    return found


def page(results: dict[str, list[Result]], refused: dict[str, str]) -> str:
    """The page of the docs."""
    lines = [
        "# Which models can be patched",
        "",
        f"Made by `make sweep` with timm {timm.__version__} and torch {torch.__version__}: every",
        "configuration is created on the meta device, then patched, run and unpatched with",
        f"{', '.join(f'`{name}`' for name in ENCODINGS)}. That the numbers are right is tested on",
        "tiny models with random weights (`tests/conformance/test_models.py`).",
        "",
        "## One grid for all blocks",
        "",
        f"{count(results['global'])} configurations.",
        "",
        *table(results["global"]),
        "",
        "## Windows and stages",
        "",
        f"{count(results['staged'])} configurations. Attention inside windows or stages is",
        "patched with their own layout; the last column says what is left alone.",
        "",
        *table(results["staged"]),
        "",
        "## Refused",
        "",
        "| for example | reason |",
        "|---|---|",
        *(f"| `{name}` | {reason} |" for name, reason in refused.items()),
        "",
        "Attention pooling, class attention and convolutions are left alone everywhere.",
        "",
        "## All configurations",
        "",
        "| configuration | layouts at its own image size (attention modules) |",
        "|---|---|",
    ]
    for result in [*results["global"], *results["staged"]]:
        lines.append(f"| `{result.name}` | {result.error or result.layouts} |")
    return "\n".join(lines) + "\n"


def count(results: list[Result]) -> str:
    """How many of them work."""
    counted = [result for result in results if result.layouts != NO_ATTENTION]
    return f"{sum(not result.error for result in counted)} of {len(counted)}"


def table(results: list[Result]) -> list[str]:
    """A row per timm module."""
    lines = ["| timm module | patched | attention classes | left alone |", "|---|---|---|---|"]
    for module in dict.fromkeys(result.module for result in results):
        own = [result for result in results if result.module == module]
        classes = sorted({name for result in own for name in result.attention})
        reasons = list(dict.fromkeys(r for result in own for r in result.left_alone))
        lines.append(
            f"| `{module}` | {count(own)} | {', '.join(f'`{name}`' for name in classes)} "
            f"| {'; '.join(reasons)} |"
        )
    return lines


if __name__ == "__main__":
    main()
