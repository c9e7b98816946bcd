"""Reads a page of `posenc explore` and computes attention from it, as its script does."""

import base64
import json
import re

import numpy as np
import torch

TYPES = {"f16": np.float16, "f32": np.float32, "u16": np.uint16, "u32": np.uint32}


class Page:
    """The data of a page."""

    def __init__(self, page: bytes) -> None:
        text = page.decode()
        self.data = json.loads(_script(text, "posenc-data"))
        self.buffer = base64.b64decode(_script(text, "posenc-numbers"), validate=True)

    def array(self, found):
        dtype, count = TYPES[found["dtype"]], int(np.prod(found["shape"]))
        numbers = np.frombuffer(self.buffer, dtype, count, found["offset"])
        return torch.from_numpy(numbers.astype(np.float64) * found["scale"]).view(found["shape"])

    def weights(self, subject, layer, mode="total"):
        """`[heads, N, N]`."""
        seen = self.data["subjects"][subject]
        own = self.data["models"][seen["model"]]["layers"][layer]
        parts = seen["layers"][layer]["parts"]
        if mode == "total":
            return sum(self._weight(part) * self._logits(part).softmax(-1) for part in parts)
        (part,) = parts
        if mode == "bias":
            return self._biases(part).softmax(-1)
        query, key = (self.array(own["means"][side]) for side in ("query", "key"))
        if mode == "position":
            return self._logits(part, query, key).softmax(-1)
        grand = query[:, len(own["prefix"]) :].mean(dim=1, keepdim=True)
        rest = self.array(part["query"]) - query + grand
        scores = rest @ (self.array(part["key"]) - key).transpose(1, 2)
        return (part["scale"] * scores).softmax(-1)

    def _weight(self, part):
        return 1.0 if part["weight"] is None else self.array(part["weight"])

    def _logits(self, part, query=None, key=None):
        query = self.array(part["query"]) if query is None else query
        key = self.array(part["key"]) if key is None else key
        logits = part["scale"] * query @ key.transpose(1, 2)
        if part["native"] is not None:
            logits = logits + self.array(part["native"])
        return logits + self._biases(part) if part["biases"] else logits

    def _biases(self, part):
        return sum(map(self._bias, part["biases"]))

    def _bias(self, bias):
        if bias["kind"] == "dense":
            return self.array(bias["bias"])
        if bias["kind"] == "low rank":
            return self.array(bias["left"]) @ self.array(bias["right"]).transpose(1, 2)
        index, table = self.array(bias["index"]).long(), self.array(bias["table"])
        tokens = torch.arange(len(index))
        if bias["by"] == "one":
            return table[:, 0, index]
        rows = tokens[:, None] if bias["by"] == "query" else tokens
        return table[:, rows, index]


def _script(text, name):
    (found,) = re.findall(rf'<script type="[^"]*" id="{name}">(.*?)</script>', text, re.S)
    return found
