"""Reference outputs of public implementations; `golden/manifest.json` says what they mean."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import posenc

IRPE_METHODS = {"euc": "euclidean", "quant": "quantized", "product": "product", "cross": "cross"}
FOLDER = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One case: floats as float64, integers as int64."""

    name: str
    hyperparameters: dict[str, Any]
    arrays: dict[str, Tensor]
    tolerance: dict[str, Any]

    def __getitem__(self, array: str) -> Tensor:
        return self.arrays[array]

    def leaf(self, array: str) -> Tensor:
        """A copy that collects its gradient."""
        return self.arrays[array].clone().requires_grad_()

    @property
    def close(self) -> dict[str, float]:
        """`atol` and `rtol` of the float64 comparison, or of the only one that is stated."""
        stated = self.tolerance.get("float64") or self.tolerance["float32"]
        return {"atol": stated["atol"], "rtol": stated.get("rtol", 0.0)}


@functools.cache
def _entries() -> dict[str, dict[str, Any]]:
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    return {entry["name"]: entry for entry in manifest["cases"]}


def names(prefix: str) -> list[str]:
    """Names of the cases that start with `prefix`; none is an error, not an empty test."""
    found = [name for name in _entries() if name.startswith(prefix)]
    if not found:
        raise LookupError(f"no golden case starts with {prefix!r}")
    return found


def case(name: str) -> GoldenCase:
    """The case, with arrays of its own."""
    entry = _entries()[name]
    with np.load(FOLDER / entry["file"]) as stored:
        arrays = {key: _tensor(stored[key]) for key in entry["arrays"]}
    return GoldenCase(name, entry["hyperparameters"], arrays, entry["tolerance"])


def _tensor(array: np.ndarray) -> Tensor:
    dtype = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64
    return torch.from_numpy(array.astype(dtype))


def irpe_of(golden: GoldenCase) -> tuple[posenc.IRPE, posenc.TokenLayout]:
    """The encoding of a case of iRPE, with its tables, and the layout."""
    options = golden.hyperparameters
    layout = posenc.TokenLayout(*options["grid_h_w"], prefix=options["skip"])
    irpe = posenc.IRPE(
        layout,
        options["heads"],
        options["head_dim"],
        mode=options["mode"],
        method=IRPE_METHODS[options["method"]],
        on=options["rpe_on"],
        share_heads=options["shared_head"],
        ratio=options["ratio"],
        dtype=torch.float64,
    )
    tables = {name: array for name, array in golden.arrays.items() if name.startswith("table_")}
    irpe.load_state_dict(tables, strict=True)
    return irpe, layout
