"""Files of encodings: written by hand, read again, and refused without a change of the model."""

import json

import oracles
import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_vit import snapshot, vit

import posenc


def patched(names="swin", build=vit, **options):
    model = posenc.patch_model(build(), names, **options)
    for index, encoding in enumerate(posenc.patched_encodings(model).values()):
        oracles.randomize(encoding, index)
    return model


def config_in(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["posenc"])


def write(path, config, tensors):
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(tensors, path, metadata={"posenc": text})


def assert_refused(model, path, match):
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        posenc.load_encodings(model, path)
    assert snapshot(model) == before
