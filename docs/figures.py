"""Runs the code of docs/analysis.md, and writes the pictures that it shows.

python docs/figures.py
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import matplotlib as mpl
    from matplotlib import pyplot as plt
    from PIL import Image
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[viz]"') from None

PAGE = Path(__file__).parent / "analysis.md"
LARGEST = 120 * 1024  # bytes of a picture; a photo gets fewer colors


def figures() -> Iterator[tuple[Path, Any]]:
    """The path of each picture, and the figure of the code above it."""
    parts = re.findall(
        r"```python\n(?P<code>.*?)```|!\[.*?\]\((?P<path>.*?)\)", PAGE.read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    for code, path in parts:
        if code:
            exec(compile(code, PAGE.name, "exec"), names)
        else:
            yield PAGE.parent / path, names.pop("figure")


def write(figure: Any, path: Path) -> None:
    """Without the version of matplotlib."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100, metadata={"Software": None})
    plt.close(figure)
    image = Image.open(file).convert("RGB")
    path.parent.mkdir(exist_ok=True)
    image.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        image.quantize(256, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def main() -> None:
    """Writes all."""
    mpl.use("Agg")
    for path, figure in figures():
        write(figure, path)
        print(path.relative_to(PAGE.parent), f"{path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
