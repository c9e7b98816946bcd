"""Attention that sees positions only can be a convolution: two theorems, and what heads learn.

    python examples/attention_is_convolution.py --out demo

1. Cordonnier et al. 2020, arXiv 1911.03584, theorem 1: K x K heads whose bias is quadratic in the
   offset are a K x K convolution, the nearer the larger alpha is.
2. Li et al. 2021, arXiv 2111.01353: so are heads that see patches instead of pixels.
3. Where heads look that start at random places, before and after a short training on digits.

Prints the largest errors, in float64, and where heads look; writes both as convolution.txt, and
errors.png and centers.png, to --out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

import posenc

try:
    import convolution_figures
    import digits
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[demo]"') from None

ALPHAS = (1, 2, 4, 8, 16, 24, 32, 40)
GRID = (12, 20)  # pixels: no square, so that height and width cannot be mixed up
HEADS, WIDTH, LAYERS = 9, 72, 3
TOKENS = (10, 10)  # of 2x2 pixels: the digits fill 20x20 of the 28x28
STEPS, BATCH = 300, 16


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    errors = measure(args.seed)
    print("\n".join(table(errors)), flush=True)
    before, after, accuracy = train(args.seed, args.steps)
    learned = movements(before, after, accuracy, args.steps)
    print("\n".join(["", *learned]))
    notes = [
        " ".join(["python", "examples/attention_is_convolution.py", *sys.argv[1:]]),
        f"posenc {posenc.__version__}, torch {torch.__version__}, seed {args.seed}",
    ]
    text = "\n".join([*table(errors), "", *learned, "", *notes])
    (args.out / "convolution.txt").write_text(text + "\n")
    convolution_figures.draw_errors(ALPHAS, errors, args.out / "errors.png")
    convolution_figures.draw_centers(before, after, args.out / "centers.png")
    print(f"\nwritten to {args.out}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, of 16 images each")
    return parser.parse_args()


# The two theorems


def attend_to_places(values: Tensor, encoding: nn.Module, layout: posenc.TokenLayout) -> Tensor:
    """Heads that do not see content, summed: `[B, heads, N, D]` -> `[B, N, D]`."""
    content = torch.randn_like(values)  # as queries and keys, without any effect
    terms = encoding(content, content, layout)
    out = posenc.attend(content, content, values, [*terms, posenc.ContentScale(0.0)])
    return out.sum(dim=1)


def pixel_attention(image: Tensor, kernel: Tensor, alpha: float) -> Tensor:
    """Cordonnier et al.: one head for each place of the kernel, with its weights as values.

    Args:
        image: `[B, C, height, width]`, each pixel is a token.
        kernel: `[C_out, C, K, K]`, as for `torch.nn.functional.conv2d`, K odd.
        alpha: of the bias `-alpha |offset - center|^2`.

    Returns:
        `[B, C_out, height, width]`.
    """
    size = kernel.shape[-1]
    layout = posenc.TokenLayout(*image.shape[-2:])
    options = {"alpha": alpha, "dtype": image.dtype}  # heads start as the K x K stencil
    encoding = posenc.create_encoding("quadratic", layout=layout, num_heads=size**2, **options)
    rows, columns = (encoding.centers.long() + size // 2).unbind(dim=-1)
    weights = kernel[:, :, rows, columns]  # [C_out, C, heads]
    values = torch.einsum("och, bcn -> bhno", weights, image.flatten(2))
    out = attend_to_places(values, encoding, layout)
    return rearrange(out, "b (h w) o -> b o h w", h=layout.height)


class Shifts(posenc.AttentionEncoding):
    """Each head looks at the patch at its own offset, or where there is none at a prefix token.

    `b_h[i, j]` is `2 alpha` for the key at `query + offset_h`, `alpha` for a prefix token, and 0
    for all others.
    """

    is_static = True

    def __init__(
        self, layout: posenc.TokenLayout, offsets: list[tuple[int, int]], alpha: float
    ) -> None:
        super().__init__(layout, num_heads=len(offsets))
        self.offsets = offsets
        self.alpha = alpha

    def terms(
        self, q: Tensor, k: Tensor, layout: posenc.TokenLayout, scale: float
    ) -> tuple[posenc.LookupBias]:
        """One number for each offset, and one for what patches give to prefix tokens."""
        height, width = layout.grid
        count = (2 * height - 1) * (2 * width - 1)
        buckets = torch.arange(count).view(2 * height - 1, 2 * width - 1)  # of query - key
        index = posenc.pair_index(layout, buckets, count, prefix_pairs="separate")
        table = q.new_zeros(1, self.num_heads, 1, index.num_buckets)
        table[..., count + 1] = self.alpha  # a patch looks at a prefix token
        for head, (row, column) in enumerate(self.offsets):
            if abs(row) < height and abs(column) < width:
                bucket = buckets[height - 1 - row, width - 1 - column]
                table[0, head, 0, bucket] = 2 * self.alpha
        return (posenc.LookupBias(table, index),)


def patch_attention(image: Tensor, kernel: Tensor, patch: int, alpha: float) -> Tensor:
    """Li et al.: one head for each neighboring patch that the kernel reaches.

    A head's values are what its patch contributes to all pixels of the query's patch. A token of
    zeros before the patches is what heads find beyond the border: zero padding.

    Args:
        image: `[B, C, height, width]`.
        kernel: `[C_out, C, K, K]`, K odd.
        patch: side of a patch in pixels; divides height and width.
        alpha: how far the bias of the right patch is above the zero token's, and that above the
            others'.

    Returns:
        `[B, C_out, height, width]`.
    """
    reach = math.ceil((kernel.shape[-1] // 2) / patch)  # in patches
    steps = range(-reach, reach + 1)
    offsets = list(itertools.product(steps, steps))
    weights = torch.stack([shifted_weights(kernel, patch, offset) for offset in offsets])
    tokens = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
    tokens = F.pad(tokens, (0, 0, 1, 0))  # the token of zeros
    layout = posenc.TokenLayout(image.shape[-2] // patch, image.shape[-1] // patch, prefix=1)
    values = torch.einsum("hoi, bni -> bhno", weights, tokens)
    out = attend_to_places(values, Shifts(layout, offsets, alpha), layout)[:, 1:]
    grid = {"h": layout.height, "p": patch, "q": patch}
    return rearrange(out, "b (h w) (o p q) -> b o (h p) (w q)", **grid)


def shifted_weights(kernel: Tensor, patch: int, offset: tuple[int, int]) -> Tensor:
    """`W[(o, a), (c, b)] = kernel[o, c, patch * offset + b - a + K // 2]`, 0 outside the kernel.

    From the pixels b of the patch at this offset to the pixels a of the query's patch:
    `[C_out P P, C P P]`.
    """
    pixels = torch.arange(patch)
    steps = pixels - pixels[:, None]  # [a, b]
    margin = patch * (max(map(abs, offset)) + 1)
    padded = F.pad(kernel, [margin] * 4)
    rows, columns = (patch * step + steps + kernel.shape[-1] // 2 + margin for step in offset)
    taps = padded[:, :, rows[:, :, None, None], columns]
    return rearrange(taps, "o c a b y x -> (o a y) (c b x)")


def measure(seed: int) -> dict[str, list[float]]:
    """The largest errors for each of `ALPHAS`, of an image and of kernels drawn at random."""
    torch.manual_seed(seed)
    image = torch.randn(2, 3, *GRID, dtype=torch.float64)
    small, large = (torch.randn(4, 3, k, k, dtype=torch.float64) for k in (3, 5))
    replicated = F.conv2d(F.pad(image, [1] * 4, mode="replicate"), small)
    zeros = F.conv2d(image, small, padding=1)
    by_pixels = [pixel_attention(image, small, alpha) for alpha in ALPHAS]
    by_patches = [patch_attention(image, large, 4, alpha) for alpha in ALPHAS]
    return {
        "3x3, replicate": [largest(out - replicated) for out in by_pixels],
        "3x3, zeros": [largest(out - zeros) for out in by_pixels],
        "3x3, interior": [largest((out - zeros)[..., 1:-1, 1:-1]) for out in by_pixels],
        "patches, zeros": [largest(out - F.conv2d(image, large, padding=2)) for out in by_patches],
    }


def largest(x: Tensor) -> float:
    return x.abs().max().item()


def table(errors: dict[str, list[float]]) -> list[str]:
    lines = [
        f"Largest errors against conv2d, image {GRID[0]}x{GRID[1]}, 3 -> 4 channels, float64",
        "pixels: 9 heads, 3x3 kernel; patches of 4x4: 9 heads, 5x5 kernel",
        "",
        "alpha  pixels,            pixels,         pixels,           patches,",
        "       replicate padding  zero padding    without border    zero padding",
    ]
    for alpha, *row in zip(ALPHAS, *errors.values(), strict=True):
        cells = [f"{value:<{width}.1e}" for value, width in zip(row, (19, 16, 18, 0), strict=True)]
        lines.append(f"{alpha:<7}" + "".join(cells).rstrip())
    return lines


# The training


class Layer(nn.Module):
    """Heads that see places only, and an MLP."""

    def __init__(self, layout: posenc.TokenLayout) -> None:
        super().__init__()
        self.layout = layout
        options = {"num_heads": HEADS, "init": "normal"}  # centers from N(0, 2 I)
        self.encoding = posenc.create_encoding("quadratic", layout=layout, **options)
        self.norm = nn.LayerNorm(WIDTH)
        self.values = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, N, WIDTH]` -> the same shape."""
        values = rearrange(self.values(self.norm(x)), "b n (h d) -> b h n d", h=HEADS)
        terms = self.encoding(values, values, self.layout)
        out = posenc.attend(values, values, values, [*terms, posenc.ContentScale(0.0)])
        x = x + self.out(rearrange(out, "b h n d -> b n (h d)"))
        return x + self.mlp(x)


class Net(nn.Module):
    """Tokens of 2x2 pixels, layers, and a classifier of the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, 2, stride=2)
        self.layers = nn.Sequential(*(Layer(posenc.TokenLayout(*TOKENS)) for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10))

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 1, 28, 28]` -> `[B, 10]`."""
        tokens = self.embed(images[..., 4:-4, 4:-4]).flatten(2).transpose(1, 2)
        return self.head(self.layers(tokens).mean(dim=1))


class Places(NamedTuple):
    """Where heads look: centers `[layers, heads, 2]` in tokens, and alpha `[layers, heads]`."""

    centers: Tensor
    alpha: Tensor


def places(net: Net) -> Places:
    encodings = [layer.encoding for layer in net.layers]
    parameters = ([getattr(each, name) for each in encodings] for name in Places._fields)
    return Places(*(torch.stack(each).detach().clone() for each in parameters))


def train(seed: int, steps: int) -> tuple[Places, Places, float]:
    """The places of heads before and after, and the accuracy on test images."""
    images, labels, test_images, test_labels = digits.split()
    torch.manual_seed(seed)
    net = Net()
    before = places(net)
    encodings = [p for name, p in net.named_parameters() if "encoding" in name]
    rest = [p for name, p in net.named_parameters() if "encoding" not in name]
    groups = [{"params": rest, "lr": 3e-3}, {"params": encodings, "lr": 0.05, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = net(test_images).argmax(dim=1) == test_labels
    return before, places(net), right.float().mean().item()


def movements(before: Places, after: Places, accuracy: float, steps: int) -> list[str]:
    moved = (after.centers - before.centers).norm(dim=-1)
    lines = [
        f"{LAYERS} layers of {HEADS} heads that see places only, {steps} steps on digits: "
        f"{100 * accuracy:.1f} % of the test images",
        "layer  mean distance of centers from the query: before, after  moved by  alpha after",
    ]
    for layer in range(LAYERS):
        first, last = (p.centers[layer].norm(dim=-1).mean().item() for p in (before, after))
        alpha = after.alpha[layer]
        lines.append(
            f"{layer:<7}{first:.2f}, {last:.2f} tokens{'':<37}{moved[layer].mean():.2f}      "
            f"{alpha.min():.2f} to {alpha.max():.2f}"
        )
    return lines


if __name__ == "__main__":
    main()
