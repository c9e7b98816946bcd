"""Import, encode, patch, train a step and save with the core dependencies alone.

`make smoke-lowest` runs it as a script: it needs no pytest.
"""

import importlib.metadata
import tempfile
import warnings
from pathlib import Path

import timm
import torch

import posenc

SIZE, LAYOUT = (32, 48), posenc.TokenLayout(height=2, width=3, prefix=1)


def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=2, num_classes=3)


def attended(name):
    """Inside the user's own attention."""
    encoding = posenc.create_encoding(name, layout=LAYOUT, num_heads=3, head_dim=8)
    q = torch.randn(2, 3, LAYOUT.num_tokens, 8, requires_grad=True)
    terms = encoding(q, q, LAYOUT)
    expected = posenc.attend(q, q, q, terms, backend="reference")
    torch.testing.assert_close(posenc.attend(q, q, q, terms), expected)


def patched(name, folder):
    """Inside a model, and from a file inside another."""
    model, other, images = vit().eval(), vit().eval(), torch.randn(2, 3, *SIZE)
    other.load_state_dict(model.state_dict())
    posenc.patch_model(model, name)
    model(images).square().sum().backward()
    assert all(parameter.grad is not None for _, parameter in posenc.encoding_parameters(model))
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.add_(torch.randn_like(parameter))
    file = folder / f"{name}.safetensors"
    posenc.save_encodings(model, file)
    posenc.load_encodings(other, file)
    torch.testing.assert_close(other(images), model(images))


def main():
    for package in ("torch", "timm", "einops", "safetensors"):
        print(package, importlib.metadata.version(package))
    warnings.filterwarnings("ignore", "posenc: the patched model gives other outputs")
    with tempfile.TemporaryDirectory() as folder:
        for name in posenc.list_encodings():
            if issubclass(posenc.registry.encoding_class(name), posenc.AttentionEncoding):
                attended(name)
            patched(name, Path(folder))
            print(name, "works")


if __name__ == "__main__":
    main()
