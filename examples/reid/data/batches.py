"""Photos as batches: P people with K photos each, the same ones for the same seed and epoch.

Nothing here depends on global random state, on the number of workers or of processes: that is what
makes a resumed training equal to one that was not interrupted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from data.augment import USUAL, Augmentation
from data.market import Photo


class UnreadableImageError(ValueError):
    """A photo that cannot be decoded."""


class Photos(Dataset):
    """`(image [3, height, width] uint8, index)`; with a seed they are changed, for training."""

    def __init__(
        self,
        photos: Sequence[Photo],
        size: tuple[int, int],
        *,
        seed: int | None = None,
        augmentation: Augmentation = USUAL,
    ) -> None:
        self.photos, self.size, self.seed, self.epoch = photos, size, seed, 0
        self.augment = augmentation.transform(size)

    def __len__(self) -> int:
        """The number of photos."""
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image, and where it stands in the list."""
        image = read_image(self.photos[index].path, self.size)
        if self.seed is None:
            return image, index
        with torch.random.fork_rng(devices=[]):
            entropy = np.random.SeedSequence([self.seed, self.epoch, index])
            # Not torch.manual_seed, which is slow: it asks for all kinds of devices.
            torch.default_generator.manual_seed(int(entropy.generate_state(1)[0]))
            return self.augment(image), index


def read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """`[3, height, width]` uint8.

    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    height, width = size
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (width, height))  # a JPEG is decoded no larger than needed
            small = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, SyntaxError) as error:
        raise UnreadableImageError(
            f"{path} cannot be read ({error}); replace or remove it"
        ) from error
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


class PeopleSampler(BatchSampler):
    """Batches of `people` x `photos` indices, in an epoch about as many as there are photos.

    An epoch goes through all people several times, each time in a new order. Of a person with fewer
    photos some come twice in a batch.

    Raises:
        ValueError: fewer people than a batch needs, or a person with one photo only.
    """

    def __init__(self, persons: Sequence[int], people: int, photos: int, seed: int) -> None:
        self.people, self.photos, self.seed, self.epoch = people, photos, seed, 0
        self.batch_size, self.drop_last = people * photos, True  # what accelerate asks for
        self.members = defaultdict(list)
        for index, person in enumerate(persons):
            self.members[person].append(index)
        self._check()
        self.rounds = max(1, round(len(persons) / (len(self.members) * photos)))

    def _check(self) -> None:
        if self.people < 2 or self.photos < 2:
            raise ValueError(
                "triplets need at least 2 people with 2 photos in a batch, got "
                f"{self.people} x {self.photos}"
            )
        if len(self.members) < self.people:
            raise ValueError(
                f"a batch has {self.people} people x {self.photos} photos, but the training set "
                f"only {len(self.members)} people; use a smaller batch"
            )
        if lonely := [person for person, own in self.members.items() if len(own) < 2]:
            raise ValueError(
                f"{len(lonely)} people have one photo only, such as person {lonely[0]}: there is "
                "no other photo to be near to; remove them from the training set"
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.rounds * (len(self.members) // self.people)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of this epoch."""
        rng = np.random.default_rng([self.seed, self.epoch])
        everyone = sorted(self.members)
        for _ in range(self.rounds):
            order = rng.permutation(everyone)
            for start in range(0, len(order) - self.people + 1, self.people):
                batch = order[start : start + self.people]
                yield [int(i) for person in batch for i in self._some_photos(int(person), rng)]

    def _some_photos(self, person: int, rng: np.random.Generator) -> np.ndarray:
        own = self.members[person]
        first = rng.permutation(own)[: self.photos]
        return np.concatenate([first, rng.choice(own, self.photos - len(first))])


def training_labels(photos: Sequence[Photo]) -> list[int]:
    """People numbered from 0, in the order of their names."""
    numbers = {person: i for i, person in enumerate(sorted({photo.person for photo in photos}))}
    return [numbers[photo.person] for photo in photos]


def photo_loader(
    photos: Sequence[Photo], size: tuple[int, int], batch: int = 128, workers: int = 0
) -> DataLoader:
    """All photos in order."""
    return DataLoader(Photos(photos, size), batch_size=batch, num_workers=workers)
