"""How sharp the loss is: the Hessian of a patched ViT, and of its encoding alone.

pip install ".[interpret]" && python examples/hessian.py

Products with the Hessian are of hessian-eigenthings; they differentiate twice, which fused
attention cannot, and `backend="reference"` can. Weights are random, then trained for seconds.
"""

from collections.abc import Container

import timm
import torch
from torch import Tensor, nn

import posenc

try:
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss, trace
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[interpret]"') from None

LOSS = nn.functional.cross_entropy


def build(backend: str = "reference") -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "num_heads": 2, "depth": 2}
    vit = timm.create_model("vit_tiny_patch16_224", **sizes, pos_embed="none", num_classes=4)
    return posenc.patch_model(vit, "swin", backend=backend).double().eval()


def curvature(
    model: nn.Module, images: Tensor, labels: Tensor, names: Container[str]
) -> dict[str, float]:
    """Over the parameters named; eigenvalues are found to a share of 1e-4."""
    data, loss = [(images, labels)], supervised_loss(LOSS)
    hessian = HessianOperator(model, data, loss, param_filter=lambda name, _: name in names)
    options = {"k": 1, "max_iter": min(60, hessian.size), "reorthogonalize": True, "seed": 0}
    found = {"largest": lanczos(hessian, which="LA", **options)}
    found["smallest"] = lanczos(hessian, which="SA", **options)
    if not all(one.converged.all() for one in found.values()):  # it does not raise
        raise ValueError(f"{options['max_iter']} steps of Lanczos are too few")
    values = {end: one.eigenvalues.item() for end, one in found.items()}
    return {**values, "trace": trace(hessian, num_matvecs=60, seed=0).estimate}


def main() -> None:
    labels = torch.arange(32) % 4  # which quarter of the noise is bright
    images = torch.randn(32, 3, 16, 24, generator=torch.manual_seed(1)).double()
    for image, label in zip(images, labels.tolist(), strict=True):
        image.view(3, 2, 8, 2, 12)[:, label // 2, :, label % 2] += 1.0
    try:
        fused = build("tiled")
        curvature(fused, images, labels, dict(fused.named_parameters()))
    except RuntimeError as error:
        print(error)
    model = build()
    parameters, encoding = dict(model.named_parameters()), dict(posenc.encoding_parameters(model))
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-3)
    for step in range(41):
        if step % 40 == 0:
            for words, names in (("all parameters", parameters), ("encoding", encoding)):
                print(f"step {step}, {words}:", curvature(model, images, labels, names))
        optimizer.zero_grad()
        LOSS(model(images), labels).backward()
        optimizer.step()


if __name__ == "__main__":
    main()
