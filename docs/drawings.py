"""Draws the pictures of the pages about concepts, as SVG with a light ground of their own.

python docs/drawings.py

Numbers, names and layers in them are those of the code: the buckets of `posenc.pair_index`, the
registry of encodings, the limits of the picker and the contract of `setup.cfg`.
"""

from __future__ import annotations

import configparser
from collections.abc import Callable
from html import escape
from pathlib import Path

import torch

import posenc
from posenc.attention import picker
from posenc.attention.backends import tiled
from posenc.encodings.base import TokenEncoding
from posenc.registry import encoding_class

DOCS = Path(__file__).parent
INK, FAINT, LINE = "#1f2328", "#57606a", "#8c959f"
BLUE, ORANGE, GREEN, GRAY = "#d7e8f7", "#fde8c4", "#d3efe3", "#eef1f4"
STRONG = {BLUE: "#0063a6", ORANGE: "#9a5b00", GREEN: "#006b4f", GRAY: LINE}


class Drawing:
    """Shapes and words, and the SVG that they are."""

    def __init__(self, width: int, height: int, title: str) -> None:
        """A light sheet; the title is read aloud to who cannot see it."""
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = GRAY, *lines: str
    ) -> None:
        """A rectangle with centered lines, the first one in bold where there are more."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{fill}" stroke="{STRONG[fill]}"/>'
        )
        top = y + height / 2 - 8.5 * (len(lines) - 1)
        for at, line in enumerate(lines):
            bold = at == 0 and len(lines) > 1
            self.text(x + width / 2, top + 17 * at + 4.5, line, bold=bold, anchor="middle")

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 13,
        bold: bool = False,
        color: str = INK,
        anchor: str = "start",
    ) -> None:
        """One line of words, on a baseline at y."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{color}" '
            f'text-anchor="{anchor}"{weight}>{escape(words, quote=False)}</text>'
        )

    def line(self, *points: tuple[float, float], arrow: bool = True) -> None:
        """A line through points, with a head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#head)"' if arrow else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"{end}/>'
        )

    def svg(self) -> str:
        """The file."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}"'
                f' width="{self.width}" height="{self.height}" role="img" '
                'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
                f"<title>{escape(self.title)}</title>",
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
                f'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/>'
                "</marker></defs>",
                f'<rect width="{self.width}" height="{self.height}" rx="10" fill="#ffffff"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def overview() -> Drawing:
    """What posenc is made of."""
    drawing = Drawing(740, 190, "An encoding gives terms, a backend computes them, in any model")
    middle = 62
    drawing.box(20, middle, 180, 76, BLUE, "encoding", "what position", "contributes")
    drawing.box(280, middle, 180, 76, ORANGE, "terms", "biases, turns, scales,", "as data")
    drawing.box(540, middle, 180, 76, GREEN, "backend", "how they are", "computed")
    drawing.line((200, middle + 38), (277, middle + 38))
    drawing.line((460, middle + 38), (537, middle + 38))
    drawing.text(238, middle + 30, "layout", size=12, color=FAINT, anchor="middle")
    drawing.text(498, middle + 30, "q, k, v", size=12, color=FAINT, anchor="middle")
    drawing.text(370, 34, "patch_model puts this into each attention module", anchor="middle")
    drawing.text(
        370, 172, "in place, with the old weights and keys, and back again", color=FAINT,
        size=12, anchor="middle",
    )  # fmt: skip
    return drawing


LAYOUT = posenc.TokenLayout(3, 5, prefix=2)
QUERY, KEY = (1, 3), (2, 0)
CELL = 44


def layout() -> Drawing:
    """The tokens of 3x5 patches after 2 prefix tokens, and the table of offsets between them."""
    drawing = Drawing(
        740, 340, "Tokens 0 and 1 are the prefix, tokens 2 to 16 the patches, row by row"
    )
    drawing.text(20, 30, "TokenLayout(height=3, width=5, prefix=2)", bold=True)
    for token, name in enumerate(("CLS", "register")):
        drawing.box(44 + 96 * token, 48, 88, CELL - 6, GREEN, f"{token}   {name}")
    for row in range(LAYOUT.height):
        drawing.text(32, 138 + CELL * row, str(row), color=FAINT, anchor="middle")
        for column in range(LAYOUT.width):
            _patch(drawing, row, column)
    for column in range(LAYOUT.width):
        drawing.text(66 + CELL * column, 254, str(column), color=FAINT, anchor="middle")
    drawing.text(44, 280, "query: row 1, column 3", color=STRONG[BLUE])
    drawing.text(44, 300, "key: row 2, column 0", color=STRONG[ORANGE])
    drawing.text(44, 320, "offset, query minus key: (-1, 3)")
    _offsets(drawing)
    return drawing


def _patch(drawing: Drawing, row: int, column: int) -> None:
    fill = {QUERY: BLUE, KEY: ORANGE}.get((row, column), GRAY)
    drawing.box(44 + CELL * column, 110 + CELL * row, CELL, CELL, fill, str(_token(row, column)))


def _token(row: int, column: int) -> int:
    return LAYOUT.prefix + row * LAYOUT.width + column


def _offsets(drawing: Drawing) -> None:
    """The buckets of all offsets, that of the query and the key marked as `PairIndex` has it."""
    rows, columns = 2 * LAYOUT.height - 1, 2 * LAYOUT.width - 1
    buckets = torch.arange(rows * columns).view(rows, columns)
    index = posenc.pair_index(LAYOUT, buckets, rows * columns, prefix_pairs="separate")
    pairs = index.dense()
    marked = pairs[_token(*QUERY), _token(*KEY)].item()
    left, side = 386, 37
    drawing.text(left, 30, "One bucket for each offset", bold=True)
    for column in range(columns):
        drawing.text(
            left + side * (column + 0.5), 62, str(column - LAYOUT.width + 1),
            size=11, color=FAINT, anchor="middle",
        )  # fmt: skip
    for row in range(rows):
        y = 70 + 32 * row
        drawing.text(left - 8, y + 21, str(row - LAYOUT.height + 1), size=11, color=FAINT,
                     anchor="end")  # fmt: skip
        for column in range(columns):
            bucket = buckets[row, column].item()
            fill = ORANGE if bucket == marked else GRAY
            drawing.box(left + side * column, y, side, 32, fill, str(bucket))
    drawing.text(left, 256, "and one for each kind of pair with a prefix token:", color=FAINT)
    last = LAYOUT.num_tokens - 1
    kinds = {"prefix, patch": (0, last), "patch, prefix": (last, 0), "both prefix": (0, 1)}
    for at, (name, pair) in enumerate(kinds.items()):
        drawing.box(left + 113 * at, 270, 107, 40, GREEN, str(pairs[pair].item()), name)


def encoding() -> Drawing:
    """Where in a block the encodings act."""
    at = {place: [] for place in ("position", "block", "block_input", "attention_input",
                                  "mlp_hidden", "attention")}  # fmt: skip
    for name in posenc.list_encodings():
        cls = encoding_class(name)
        at[cls.placement if issubclass(cls, TokenEncoding) else "attention"].append(name)
    drawing = Drawing(740, 560, "A block of a vision transformer, and where encodings act in it")
    drawing.parts.append(
        f'<rect x="20" y="118" width="290" height="424" rx="10" fill="none" stroke="{LINE}" '
        'stroke-dasharray="5 4"/>'
    )
    drawing.text(34, 534, "one block", color=FAINT, size=12)
    steps = [
        (16, GRAY, "patch embedding, prefix tokens", None),
        (66, BLUE, "position step: x + table", "position"),
        (136, BLUE, "input of the block", "block_input"),
        (186, GRAY, "norm", None),
        (236, BLUE, "tokens that enter attention", "attention_input"),
        (286, ORANGE, "attention", "attention"),
        (336, GRAY, "norm", None),
        (386, GRAY, "MLP: W_1, activation", None),
        (436, BLUE, "hidden tokens of the MLP, W_2", "mlp_hidden"),
        (486, BLUE, "output of the block", "block"),
    ]
    for y, fill, words, place in steps:
        drawing.box(44, y, 236, 34, fill, words)
        if y != steps[-1][0]:
            following = min(other for other, *_ in steps if other > y)
            drawing.line((162, y + 34), (162, following - 2))
        if place is not None:
            _names(drawing, y + 17, at[place], fill)
    for start, end in ((153, 328), (353, 478)):  # shortcuts: of the block's input, and of the sum
        drawing.line((44, start), (32, start), (32, end), (158, end))
    return drawing


def _names(drawing: Drawing, y: float, names: list[str], fill: str) -> None:
    """Beside a step, in lines of a few names."""
    lines = [", ".join(names[at : at + 5]) for at in range(0, len(names), 5)]
    drawing.line((322, y), (284, y))
    for at, line in enumerate(lines):
        words = line + ("," if at + 1 < len(lines) else "")
        drawing.text(330, y + 4.5 + 19 * at, words, color=STRONG[fill])


def term() -> Drawing:
    """What each term changes in the formula of attention."""
    drawing = Drawing(740, 290, "Which part of the formula of attention each term changes")
    pieces = [
        (20, 0, "out = softmax(", None, ()),
        (134, 84, "scale", ORANGE, ("ContentScale",)),
        (224, 104, "q k^T", BLUE, ("Rotation,", "MatrixRotation")),
        (336, 0, "+", None, ()),
        (356, 96, "b", GREEN, ("DenseBias,", "LookupBias,", "LowRankBias")),
        (458, 0, "+ mask) v +", None, ()),
        (562, 158, "sum_j a_ij R[id(i, j)]", GREEN, ("ValueLookup",)),
    ]
    for x, width, words, fill, names in pieces:
        if fill is None:
            drawing.text(x, 82, words, size=14)
            continue
        drawing.box(x, 58, width, 38, fill, words)
        for at, name in enumerate(names):
            drawing.text(
                x + width / 2, 128 + 18 * at, name, color=STRONG[fill], size=12, anchor="middle"
            )
        drawing.line((x + width / 2, 114), (x + width / 2, 99))
    drawing.text(20, 34, "Attention with terms", bold=True)
    drawing.box(20, 206, 300, 62, ORANGE, "Mixture", "(1 - gate) this + gate another one")
    drawing.text(340, 226, "Green: added; every backend knows these.", color=STRONG[GREEN])
    drawing.text(340, 246, "Blue and orange: rewrite the call before a", color=STRONG[BLUE])
    drawing.text(340, 264, "backend is chosen; no backend knows them.", color=STRONG[BLUE])
    return drawing


def backend() -> Drawing:
    """The rules of the picker on a CPU, in eager mode."""
    per_image, static = picker.TILED_TOKENS
    drawing = Drawing(740, 474, 'What backend="auto" takes on a CPU')
    drawing.text(20, 30, 'backend="auto" on a CPU, in eager mode and without dropout', bold=True)
    drawing.text(20, 50, "The first line that holds decides.", color=FAINT)
    thin, long = f"at most {picker.MAX_RANK} columns", f"above {tiled.KEPT_TOKENS} head_dim tokens"
    rules = [
        ("There are no terms left", "sdpa"),
        ("A value table, read by rows and by columns, no bias in training", "lowrank"),
        ("Another value table", "tiled"),
        (f"Training: factors of {thin}, not wide, {long}", "lowrank"),
        (f"Training: from {static} tokens, from {per_image} where images differ", "tiled"),
        (f"Training: up to {picker.EAGER_TOKENS} tokens", "reference"),
        ("Static biases in eval, remembered", "sdpa"),
        (f"Factors of {thin}, not wide, {long}", "lowrank"),
        (f"Factors of {thin}, of each image, in float32", "lowrank"),
        (f"Tables that differ between images, from {per_image} tokens", "tiled"),
        (f"Tables whose mask would have more than {picker.MASK_BYTES >> 20} MiB", "tiled"),
        ("All else", "sdpa"),
    ]
    colors = {"sdpa": BLUE, "tiled": GREEN, "lowrank": ORANGE, "reference": GRAY}
    for at, (question, name) in enumerate(rules):
        y = 64 + 33 * at
        drawing.box(20, y, 540, 27, GRAY, question)
        drawing.line((560, y + 13.5), (607, y + 13.5))
        drawing.box(610, y, 110, 27, colors[name], name)
    return drawing


def patch() -> Drawing:
    """What happens to a patched model in its life."""
    drawing = Drawing(740, 400, "The life of a patched model")
    drawing.box(20, 150, 150, 60, GRAY, "a model", "of timm or others")
    drawing.box(300, 150, 160, 60, BLUE, "a patched model", "old keys and weights")
    drawing.box(570, 150, 150, 60, ORANGE, "a folded model", "one size, eval")
    drawing.box(300, 310, 160, 56, GREEN, "irpe.safetensors", "the encodings alone")
    drawing.line((170, 166), (297, 166))
    drawing.text(234, 158, "patch_model", anchor="middle")
    drawing.line((300, 196), (173, 196))
    drawing.text(234, 214, "unpatch_model", anchor="middle")
    drawing.line((460, 180), (567, 180))
    drawing.text(514, 172, "fold_biases", anchor="middle")
    drawing.line((645, 210), (645, 247))
    drawing.text(645, 266, "torch.export, ONNX", anchor="middle", color=FAINT)
    drawing.line((345, 210), (345, 307))
    drawing.text(338, 262, "save_encodings", anchor="end")
    drawing.line((415, 310), (415, 213))
    drawing.text(422, 262, "load_encodings")
    drawing.line((300, 338), (95, 338), (95, 213))
    drawing.text(100, 330, "load_encodings, which patches", size=12)
    drawing.line((340, 150), (340, 108), (420, 108), (420, 147))
    drawing.text(380, 96, "train, set_layout", anchor="middle")
    drawing.text(
        380, 44, "observe at any time: summary, explain, capture_attention,", anchor="middle",
        color=FAINT,
    )  # fmt: skip
    drawing.text(
        380, 62, "posenc.analysis, posenc look, posenc explore", anchor="middle", color=FAINT
    )
    return drawing


WHAT = {
    "posenc.cli": "the command posenc",
    "posenc.doctor | posenc.testing | posenc.bench | posenc.explorer": "what uses all of it",
    "posenc.analysis": "numbers and pictures of what position does",
    "posenc.patching": "into a model, and back; what is known of models",
    "posenc.intercept | posenc.registry": "generated classes; names of encodings",
    "posenc.attention | posenc.encodings": "how it is computed; what position contributes",
    "posenc.term_maps": "changes of the tensors of terms",
    "posenc.terms": "the terms, as data",
    "posenc.functional": "pure mathematics",
    "posenc.pairs": "which bucket a pair of tokens has",
    "posenc.layout | posenc.memo": "how tokens lie; what is remembered",
    "posenc._torch": "every private name of torch that is used",
}


def architecture() -> Drawing:
    """The layers of the contract in setup.cfg; imports go down only."""
    config = configparser.ConfigParser()
    config.read(DOCS.parent / "setup.cfg")
    contract = config["importlinter:contract:layers"]["layers"].split("\n")
    layers = [layer for layer in contract if layer in WHAT]
    assert layers == [layer for layer in contract if layer and "__main__" not in layer]
    drawing = Drawing(740, 54 + 42 * len(layers), "The layers of posenc: imports go down only")
    drawing.text(20, 30, "Imports go down only", bold=True)
    for at, layer in enumerate(layers):
        y, names = 44 + 42 * at, layer.replace("posenc.", "").split(" | ")
        width = (392 - 8 * (len(names) - 1)) / len(names)
        fill = (BLUE, ORANGE, GREEN)[(at > 2) + (at > 5)]
        for place, name in enumerate(names):
            drawing.box(20 + (width + 8) * place, y, width, 34, fill, name)
        drawing.text(426, y + 21.5, WHAT[layer], size=12, color=FAINT)
    return drawing


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "concepts/overview.svg": overview,
    "concepts/layout.svg": layout,
    "concepts/encoding.svg": encoding,
    "concepts/term.svg": term,
    "concepts/backend.svg": backend,
    "concepts/patch.svg": patch,
    "architecture.svg": architecture,
}


def main() -> None:
    """Writes all."""
    for name, draw in DRAWINGS.items():
        (DOCS / name).write_text(draw().svg())
        print(name)


if __name__ == "__main__":
    main()
