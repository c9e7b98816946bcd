"""A folder of photographs as the source of images: train/CLASS/*.jpg and val/CLASS/*.jpg."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from which.sources import HELD_OUT, Batches


class Photographs:
    """Training crops and flips, tests show the middle of each photograph at the size asked for.

    Raises:
        FileNotFoundError: the folder has no train or val, or a class of them no image.
        ValueError: train and val have not the same classes, or validation would take all images.
    """

    def __init__(self, folder: Path, pixels: int, validation: int) -> None:
        self.folder, self.pixels = folder, pixels
        seen = [
            *(v2.RandomResizedCrop(pixels, antialias=True), v2.RandomHorizontalFlip()),
            *_to_input(),
        ]
        self.train = ImageFolder(str(folder / "train"), v2.Compose(seen))
        order = torch.randperm(len(self.train), generator=_generator(HELD_OUT)).tolist()
        self.held_out, self.rest = order[:validation], order[validation:]
        self.num_classes = len(self.train.classes)
        self.available = len(self.rest)
        val = ImageFolder(str(folder / "val"))
        if val.classes != self.train.classes:  # labels are places in these lists
            different = sorted({*val.classes} ^ {*self.train.classes})
            raise ValueError(f"{folder}: train and val differ in the classes {different[:5]}")
        if not self.rest:
            raise ValueError(
                f"{folder}/train has {len(order):,} images, and {validation:,} of them are kept "
                "for validation: give --data a larger folder"
            )

    def training(self, seed: int, *, images: int, passes: int, batch: int) -> Batches:
        """See `Source`."""
        generator = _generator(seed)
        drawn = torch.randperm(len(self.rest), generator=generator)[:images].tolist()
        part = Subset(self.train, [self.rest[place] for place in drawn])
        left = passes // batch
        while left:
            # The seed of the workers' crops comes from the generator, too.
            options = {"shuffle": True, "drop_last": True, "generator": generator}
            for one in _alike(_loader(part, batch, **options), generator):
                yield one
                left -= 1
                if not left:
                    return

    def validation(self, count: int) -> Batches:
        """See `Source`."""
        still = ImageFolder(str(self.folder / "train"), _middle((self.pixels, self.pixels)))
        yield from _loader(Subset(still, self.held_out[:count]), 50)

    def tests(self, seed: int, count: int, size: tuple[int, int]) -> Batches:
        """See `Source`."""
        still = ImageFolder(str(self.folder / "val"), _middle(size))
        drawn = torch.randperm(len(still), generator=_generator(seed))[:count].tolist()
        yield from _loader(Subset(still, drawn), max(1, 5_000_000 // (size[0] * size[1])))


def _middle(size: tuple[int, int]) -> v2.Compose:
    """The largest square in the middle, squeezed or stretched to this size."""
    return v2.Compose([_Square(), v2.Resize(size, antialias=True), *_to_input()])


class _Square(torch.nn.Module):
    def forward(self, image):
        return v2.functional.center_crop(image, [min(image.size)] * 2)


def _to_input() -> list[v2.Transform]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    ]


def _loader(part: Subset, batch: int, **options) -> DataLoader:
    workers = min(8, os.cpu_count() or 1) if len(part) > 1_000 else 0
    return DataLoader(part, min(batch, len(part)), num_workers=workers, **options)


def _alike(loader: DataLoader, generator: torch.Generator) -> Batches:
    """Its batches; without workers, crops come from the generator instead of the global one."""
    if loader.num_workers:
        yield from loader
        return
    state = torch.Generator().manual_seed(_drawn(generator)).get_state()
    batches = iter(loader)
    for _ in range(len(loader)):
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            one = next(batches)
            state = torch.get_rng_state()
        yield one


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
