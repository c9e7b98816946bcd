"""Others' implementations of comparable things, run beside ours with the same numbers in them.

None of their code is here: timm is installed, and the official iRPE is imported from a clone of
microsoft/Cream that the user points at.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import posenc
from posenc.bench.cases import Case, Shape, parse_case
from posenc.bench.contenders import Contender, definition
from posenc.registry import encoding_class, resolved_options

TEMPERATURE = 10_000.0  # of the rotary embedding
OFFICIAL_METHODS = {
    "product": "product",
    "cross": "cross",
    "euclidean": "euc",
    "quantized": "quant",
}


def peers_of(case: Case, irpe_repo: Path | None) -> list[Contender]:
    """Rows to print below those of this encoding."""
    if case.label == "swin":
        return [TimmBiasPeer()]
    if case.label == "rope":  # the same angles
        return [TimmRopePeer()]
    if case.name == "irpe" and irpe_repo is not None:
        peer = OfficialPeer(case, irpe_repo)
        return [peer] if peer.options["prefix_pairs"] == "shared" else []
    return []


def mixed(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """In 16 bit under autocast, with parameters in float32: as ours, and as peers are trained."""
    return module if dtype == torch.float32 else Autocast(module, dtype)


class Autocast(nn.Module):
    """A module under autocast."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As the module, in this dtype."""
        with torch.autocast(q.device.type, self.dtype):
            return self.module(q, k, v)


# Official iRPE


@dataclass(frozen=True)
class OfficialPeer:
    """The iRPE attention of microsoft/Cream."""

    encoding: Case
    repository: Path
    backend = "peer"

    @property
    def options(self) -> dict[str, object]:
        """Those of the case, and the defaults."""
        return resolved_options(encoding_class("irpe"), self.encoding.options)

    @property
    def case(self) -> str:
        """What differs from the method and mode that both have by default, and where it acts."""
        words = [self.options["method"], self.options["mode"], self.options["on"]]
        shown = [str(word) for word in words if word not in ("product", "contextual")]
        return " ".join(["peer: official iRPE", *shown])

    def build(
        self, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """With the tables of our encoding."""
        encoding = self.encoding.build(shape, device)
        official = import_official(self.repository)
        official.BUCKET_IDS_BUF.clear()  # so that each measurement of memory counts it
        config = official.get_rpe_config(
            ratio=self.options["ratio"],
            method=OFFICIAL_METHODS[str(self.options["method"])],
            mode=self.options["mode"],
            shared_head=self.options["share_heads"],
            skip=shape.prefix,
            rpe_on=self.options["on"],
        )
        modules = official.build_rpe(config, head_dim=shape.head_dim, num_heads=shape.heads)
        attention = OfficialAttention(modules, shape.layout).to(device)
        with torch.no_grad():  # same tables, same shapes, same order: q, k, v; rows, columns
            for theirs, ours in zip(attention.parameters(), encoding.parameters(), strict=True):
                theirs.copy_(ours)
        return mixed(attention, dtype), definition(encoding, shape)


class OfficialAttention(nn.Module):
    """Eager attention around the official modules, used as their own attention uses them."""

    def __init__(self, modules: list[nn.Module | None], layout: posenc.TokenLayout) -> None:
        super().__init__()
        self.on_query, self.on_key, self.on_value = modules
        self.grid = {"height": layout.height, "width": layout.width}  # else it guesses a square

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Biases are added in place, as there."""
        scale = q.shape[-1] ** -0.5
        q = q * scale
        scores = q @ k.transpose(-2, -1)
        if self.on_key is not None:
            scores += self.on_key(q, **self.grid)
        if self.on_query is not None:
            scores += self.on_query(k * scale, **self.grid).transpose(2, 3)
        attention = scores.softmax(dim=-1)
        out = attention @ v
        if self.on_value is not None:
            out += self.on_value(attention, **self.grid)
        return out


@cache
def import_official(repository: Path) -> ModuleType:
    """Its irpe.py, with its compiled index operation if that was built; it needs easydict."""
    folder = find_official(repository)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("official_irpe", folder / "irpe.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


def find_official(repository: Path) -> Path:
    """The folder of irpe.py.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    for folder in (repository, repository / "iRPE" / "DeiT-with-iRPE"):
        if (folder / "irpe.py").is_file():
            return folder
    raise FileNotFoundError(
        f"no irpe.py in {repository} or its iRPE/DeiT-with-iRPE; "
        "git clone https://github.com/microsoft/Cream and pass that folder"
    )


# timm


class TimmBiasPeer:
    """timm's relative position bias as the mask of SDPA."""

    case, backend = "peer: timm RelPosBias", "peer"

    def build(
        self, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """Swin with BEiT's three entries for prefix pairs is the same function."""
        encoding = parse_case("swin prefix_pairs=separate").build(shape, device)
        attention = TimmBias(shape).to(device)
        with torch.no_grad():
            attention.bias.relative_position_bias_table.copy_(encoding.table.T)
        return mixed(attention, dtype), definition(encoding, shape)


class TimmBias(nn.Module):
    """As timm's BEiT does it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from timm.layers import RelPosBias

        layout = shape.layout
        self.bias = RelPosBias(layout.grid, shape.heads, prefix_tokens=layout.prefix)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mask is built in every call."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias.get_bias().to(q.dtype))


class TimmRopePeer:
    """timm's axial rotary embedding."""

    case, backend = "peer: timm rope", "peer"

    def build(
        self, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """Defined by complex numbers."""
        return mixed(TimmRope(shape).to(device), dtype), ComplexRope(shape, device)


class TimmRope(nn.Module):
    """As timm's EVA does it: the grid's tokens are rotated, prefix tokens are not."""

    def __init__(self, shape: Shape) -> None:
        from timm.layers import RotaryEmbeddingCat

        super().__init__()
        self.prefix = shape.prefix
        self.rope = RotaryEmbeddingCat(
            shape.head_dim,
            temperature=TEMPERATURE,
            in_pixels=False,
            feat_shape=list(shape.layout.grid),
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The angles are computed once."""
        angles = self.rope.get_embed()
        return F.scaled_dot_product_attention(self._rotate(q, angles), self._rotate(k, angles), v)

    def _rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        from timm.layers import apply_rot_embed_cat

        prefix, grid = x[:, :, : self.prefix], x[:, :, self.prefix :]
        return torch.cat([prefix, apply_rot_embed_cat(grid, angles)], dim=2)


class ComplexRope(nn.Module):
    """The definition: pairs of columns are complex numbers, turned by row and by column."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__()
        layout = shape.layout
        rows = torch.arange(layout.height, device=device).repeat_interleave(layout.width)
        columns = torch.arange(layout.width, device=device).repeat(layout.height)
        bands = shape.head_dim // 4
        exponents = torch.arange(bands, device=device, dtype=torch.float64) / bands
        places = torch.stack([rows, columns], dim=-1)
        angles = (places[:, :, None] * TEMPERATURE**-exponents).flatten(1)
        self.turns = F.pad(torch.polar(torch.ones_like(angles), angles), (0, 0, layout.prefix, 0))
        self.turns[: layout.prefix] = 1

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """In float64."""
        scores = self._turn(q) @ self._turn(k).transpose(-2, -1) * q.shape[-1] ** -0.5
        return scores.softmax(dim=-1) @ v

    def _turn(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turns).flatten(-2)
