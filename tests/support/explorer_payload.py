"""Random payloads of the explorer's page, and the attention they stand for, in plain NumPy.

A payload is the JSON of the format with a `Stored` wherever an array goes. `weights` computes all
rows of a layer at once from what `Stored` holds: the numbers themselves, or, with `rounded`, what
16 bits keep of them.
"""

import base64
import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

TYPES = {"f16": np.float16, "f32": np.float32, "u8": np.uint8, "u16": np.uint16, "u32": np.uint32}


@dataclass
class Stored:
    numbers: np.ndarray
    dtype: str = "f16"
    scale: float = 1.0

    def raw(self):
        return (self.numbers / self.scale).astype(TYPES[self.dtype])

    def rounded(self):
        return self.raw().astype(np.float64) * self.scale


def page(template, payload):
    """The page with the payload in the place of its line."""
    numbers = bytearray()
    text = json.dumps(_packed(payload, numbers)).replace("</", "<\\/")
    coded = base64.b64encode(numbers).decode()
    scripts = (
        f'<script type="application/json" id="posenc-data">{text}</script>\n'
        f'<script type="text/plain" id="posenc-numbers">{coded}</script>'
    )
    assert template.count("<!-- posenc data -->") == 1
    return template.replace("<!-- posenc data -->", scripts)


def _packed(node, numbers):
    if isinstance(node, Stored):
        numbers.extend(bytes(-len(numbers) % 4))
        offset = len(numbers)
        numbers.extend(node.raw().tobytes())
        return {
            "dtype": node.dtype,
            "shape": list(node.numbers.shape),
            "offset": offset,
            "scale": node.scale,
        }
    if isinstance(node, dict):
        return {key: _packed(value, numbers) for key, value in node.items()}
    return [_packed(value, numbers) for value in node] if isinstance(node, list) else node


def weights(payload, subject, layer, mode, rounded=False):
    """Attention [heads, N, N] of one layer in one mode."""

    def of(stored):
        return stored.rounded() if rounded else stored.numbers

    subject = payload["subjects"][subject]
    model_layer = payload["models"][subject["model"]]["layers"][layer]
    parts = subject["layers"][layer]["parts"]
    if mode == "total":
        maps = [_softmax(_total(part, of)) for part in parts]
        gates = [1.0 if part["weight"] is None else of(part["weight"]) for part in parts]
        return sum(gate * each for gate, each in zip(gates, maps, strict=True))
    if mode == "bias":
        with_bias = [part for part in parts if part["biases"]]
        gates = [1.0 if part["weight"] is None else of(part["weight"]) for part in with_bias]
        maps = [_softmax(_biases(part, of)) for part in with_bias]
        return sum(gate * each for gate, each in zip(gates, maps, strict=True)) / sum(gates)
    (part,) = parts
    mean_query, mean_key = of(model_layer["means"]["query"]), of(model_layer["means"]["key"])
    if mode == "position":
        return _softmax(_products(mean_query, mean_key, part) + _added(part, of))
    shared = mean_query[:, len(model_layer["prefix"]) :].mean(axis=1, keepdims=True)
    query, key = of(part["query"]) - mean_query + shared, of(part["key"]) - mean_key
    return _softmax(_products(query, key, part))


def _products(query, key, part):
    return part["scale"] * np.einsum("hid,hjd->hij", query, key)


def _total(part, of):
    return _products(of(part["query"]), of(part["key"]), part) + _added(part, of)


def _added(part, of):
    return _biases(part, of) + (0 if part["native"] is None else of(part["native"]))


def _biases(part, of):
    heads, tokens, _ = part["query"].numbers.shape
    return sum((_bias(bias, of) for bias in part["biases"]), np.zeros((heads, tokens, tokens)))


def _bias(bias, of):
    if bias["kind"] == "dense":
        return of(bias["bias"])
    if bias["kind"] == "low rank":
        return np.einsum("hir,hjr->hij", of(bias["left"]), of(bias["right"]))
    table, index = of(bias["table"]), bias["index"].numbers
    i, j = np.indices(index.shape)
    return table[:, {"one": 0 * i, "query": i, "key": j}[bias["by"]], index]


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


class Maker:
    """Random models and subjects, the same for the same seed."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)

    def normal(self, *shape, size=1.0, scale=1.0):
        return Stored(size * self.random.standard_normal(shape), scale=scale)

    def model(self, name, layers, weights="random weights (seed 0)", notes=(), num_crops=30):
        return {
            "name": name,
            "weights": weights,
            "notes": list(notes),
            "num_crops": num_crops,
            "layers": layers,
        }

    def layer(self, name, grid, prefix, heads, dim, means=True, shares=True):
        tokens = len(prefix) + grid[0] * grid[1]
        smooth = self.smooth(grid, len(prefix), heads, dim)
        return {
            "name": name,
            "height": grid[0],
            "width": grid[1],
            "prefix": list(prefix),
            "heads": heads,
            "scale": dim**-0.5,
            "means": {"query": smooth, "key": self.normal(heads, tokens, dim, size=0.5, scale=0.25)}
            if means
            else None,
            "why_no_means": None if means else "the crops of this image have another grid",
            "shares": self.shares(heads) if shares else None,
        }

    def smooth(self, grid, prefix, heads, dim):
        """Means that change slowly over the grid, so that modes look different."""
        row, column = np.indices(grid).reshape(2, -1)[:, None] / max(grid)
        waves = self.random.standard_normal((3, heads, 1, dim)) * 1.2
        patches = waves[0] * np.sin(3 * row.T) + waves[1] * np.cos(4 * column.T) + waves[2]
        first = self.random.standard_normal((heads, prefix, dim))
        return Stored(np.concatenate([first, patches], axis=1))

    def shares(self, heads):
        kinds = ["content.content", "content.position", "position.content", "position.position"]
        kinds += ["mean.content", "mean.position", "native_bias", "bias"]
        values = self.random.dirichlet(np.ones(len(kinds)), heads)
        values *= 1 + self.random.uniform(0, 0.05, (heads, 1))
        table = {kind: list(values[:, k]) for k, kind in enumerate(kinds)}
        return table | {"interaction": list(1 - values.sum(axis=1))}

    def seen(self, layer, parts):
        return {"distance": list(self.random.uniform(1.5, 6, layer["heads"])), "parts": parts}

    def part(self, layer, dim, native=None, biases=(), weight=None):
        heads, tokens = layer["heads"], len(layer["prefix"]) + layer["height"] * layer["width"]
        means = layer["means"]
        query, key = (self.normal(heads, tokens, dim, size=0.8, scale=0.25) for _ in range(2))
        if means:
            query.numbers += means["query"].numbers
            key.numbers += means["key"].numbers
        return {
            "weight": weight,
            "scale": layer["scale"],
            "query": query,
            "key": key,
            "native": native,
            "biases": list(biases),
        }

    def lookup(self, by, heads, tokens, size):
        rows = 1 if by == "one" else tokens
        index = Stored(
            self.random.integers(0, size, (tokens, tokens)), "u16" if by != "key" else "u32"
        )
        return {"kind": "lookup", "by": by, "table": self.normal(heads, rows, size), "index": index}

    def image(self, name, height, width):
        row, column = np.indices((height, width))
        waves = [
            127 + 90 * np.sin(row / a + self.random.uniform(0, 6)) * np.cos(column / b)
            for a, b in ((31, 47), (53, 29), (71, 37))
        ]
        picture = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG")
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        return {"name": name, "height": height, "width": width, "url": url}


def payload():
    """A ViT with CLS, a rectangle with every kind of bias, a mixture, registers, a pyramid."""
    make = Maker()
    models, subjects = [], []

    def add(model, image, layers):
        models.append(model)
        subjects.append({"model": len(models) - 1, "image": image, "layers": layers})

    square = [make.layer(f"blocks.{i}.attn", (14, 14), ["CLS"], 6, 16) for i in range(3)]
    add(
        make.model(
            "vit_square_patch16_224", square, notes=["Untrained: maps show where chance looks."]
        ),
        make.image("waves.jpg", 224, 224),
        [make.seen(layer, [make.part(layer, 16)]) for layer in square],
    )

    rectangle = [
        make.layer(f"layers.{i}.attention", (8, 4), [], 4, 8, shares=i > 0) for i in range(4)
    ]
    kinds = [
        [make.lookup("one", 4, 32, 7)],
        [make.lookup("query", 1, 32, 5), make.lookup("key", 4, 32, 5)],
        [
            {"kind": "low rank", "left": make.normal(4, 32, 3), "right": make.normal(1, 32, 3)},
            {"kind": "low rank", "left": make.normal(1, 32, 3), "right": make.normal(4, 32, 3)},
        ],
        [{"kind": "dense", "bias": make.normal(1, 32, 32)}],
    ]
    masked = make.normal(1, 32, 32)
    masked.numbers[0, :, 5] = -np.inf
    natives = [None, masked, make.normal(4, 1, 32), None]
    add(
        make.model("reid_rectangle", rectangle, weights="checkpoint person.safetensors"),
        make.image("person </script>.jpg", 256, 128),
        [
            make.seen(layer, [make.part(layer, 8, native, biases)])
            for layer, native, biases in zip(rectangle, natives, kinds, strict=True)
        ],
    )

    mixed = [make.layer("blocks.0.attn", (6, 9), ["CLS"], 4, 8, means=False, shares=False)]
    gates = make.random.uniform(0.2, 0.8, (4, 1, 1))
    add(
        make.model("convit_mixture", mixed),
        make.image("wide.jpg", 200, 300),
        [
            make.seen(
                mixed[0],
                [
                    make.part(mixed[0], 8, weight=Stored(gates)),
                    make.part(
                        mixed[0],
                        8,
                        biases=[make.lookup("one", 4, 55, 9)],
                        weight=Stored(np.broadcast_to(1 - gates, (4, 55, 1)), "f32"),
                    ),
                ],
            )
        ],
    )

    names = ["CLS", *(f"register {i}" for i in range(1, 5))]
    registers = [make.layer(f"blocks.{i}.attn", (16, 16), names, 6, 64) for i in range(12)]
    add(
        make.model("vit_registers_patch14_224", registers, weights="pretrained"),
        make.image("registers.jpg", 224, 224),
        [make.seen(layer, [make.part(layer, 64)]) for layer in registers],
    )

    pyramid = [
        make.layer("stages.0.attn", (8, 12), [], 2, 8),
        make.layer("stages.1.attn", (4, 6), [], 4, 8),
    ]
    add(
        make.model("pyramid", pyramid),
        make.image("wide.jpg", 128, 192),
        [make.seen(layer, [make.part(layer, 8)]) for layer in pyramid],
    )
    return {"format": 1, "version": "0.1.0", "models": models, "subjects": subjects}
