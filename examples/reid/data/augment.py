"""What is changed of a photo each time it is trained on: colors, side, place, a hole."""

from __future__ import annotations

from typing import NamedTuple

from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
GRAY = tuple(round(255 * x) for x in MEAN)  # fills what is erased or padded: zero when normalized
HUE = 0.25  # how much of the strength goes to the hue
SMALLEST = 0.02  # hole, as a share of the photo


class Augmentation(NamedTuple):
    """How often and how much.

    Attributes:
        flip: probability of the mirror image.
        crop: by this share of the height, the photo is padded before it is cropped.
        erasing: probability of a hole in gray.
        erasing_area: the largest hole, as a share of the photo.
        jitter: probability of other colors.
        jitter_strength: largest change of brightness, contrast and saturation; a quarter of it is
            that of the hue, in turns.
    """

    flip: float = 0.5
    crop: float = 0.04
    erasing: float = 0.5
    erasing_area: float = 0.3
    jitter: float = 0.0
    jitter_strength: float = 0.2

    def transform(self, size: tuple[int, int]) -> v2.Transform:
        """Of images `[3, height, width]` of this size, uint8; by torch's random numbers."""
        steps: list[v2.Transform] = []
        if self.jitter:
            strength = self.jitter_strength
            colors = v2.ColorJitter(strength, strength, strength, HUE * strength)
            steps.append(v2.RandomApply([colors], self.jitter))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.crop:
            padding = max(1, int(self.crop * size[0]))
            steps.append(v2.RandomCrop(size, padding=padding, fill=GRAY))
        if self.erasing:
            area = min(SMALLEST, self.erasing_area), self.erasing_area
            steps.append(v2.RandomErasing(self.erasing, scale=area, value=list(GRAY)))
        return v2.Compose(steps or [v2.Identity()])


USUAL = Augmentation()
