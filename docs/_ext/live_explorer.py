"""Makes the page that docs/explorer.md shows in a frame: two small models of random weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

import posenc
from posenc.explorer import Exhibit, Picture, make_page

NAME = "live_explorer.html"
ENCODINGS = ("lookhere", "irpe")
SIDE = 160
SHOWN_SIDE = 320


def setup(app: Any) -> dict[str, bool]:
    """Writes it beside the other pages, unless it is there."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Any, error: Exception | None) -> None:
    path = Path(app.outdir, NAME)
    if error is None and app.builder.format == "html" and not path.exists():
        path.write_bytes(page())


def page() -> bytes:
    """Of a photo that comes with matplotlib (James S. Davis, US Navy, public domain)."""
    photo = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).crop((0, 0, 512, 512))
    picture = Picture("photo", pixels(photo, SIDE) * 2 - 1, pixels(photo, SHOWN_SIDE))
    exhibits = [Exhibit(model(name), name, "random weights", [picture]) for name in ENCODINGS]
    return make_page(exhibits)


def pixels(photo: Image.Image, side: int) -> torch.Tensor:
    """`[3, side, side]` from 0 to 1."""
    resized = photo.resize((side, side), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
    return values.view(side, side, 3).permute(2, 0, 1) / 255


def model(encoding: str) -> torch.nn.Module:
    """Three blocks of eight heads, where what starts at zero is random."""
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(SIDE, embed_dim=128, depth=3, num_heads=8, num_classes=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "posenc: the patched model gives other outputs")
        posenc.patch_model(vit, encoding)
    for _, parameter in posenc.encoding_parameters(vit):
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    return vit.eval()
