"""A folder of photographs as the comparison's images."""

import shutil

import pytest
import torch
from which.photographs import Photographs
from which.rehearsal import CLASSES, draw_photographs

PIXELS = 32


@pytest.fixture
def folder(tmp_path):
    draw_photographs(tmp_path, train=8, val=3)
    return tmp_path


def test_batches_do_not_depend_on_what_a_model_drew(folder):
    """Encodings draw their first weights from the global generator, some more than others."""
    source = Photographs(folder, PIXELS, validation=4)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        batches = []
        for images, labels in source.training(5, images=16, passes=24, batch=4):
            batches.append((images, labels))
            torch.rand(seed + 1)  # as a model may while it trains
        found.append(batches)
    assert len(found[0]) == 6
    for (images, labels), (others, same) in zip(*found, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, same)
    crops = torch.cat([images for images, _ in found[0]]).flatten(1)
    assert len(crops.unique(dim=0)) == 24  # each pass over an image crops it anew


def test_held_out_photographs_are_not_trained_on(folder):
    source = Photographs(folder, PIXELS, validation=4)
    assert len(source.held_out) == 4
    assert sorted(source.held_out + source.rest) == list(range(8 * CLASSES))
    assert sum(len(labels) for _, labels in source.validation(4)) == 4
    (images, _), *_ = source.tests(0, 5, (2 * PIXELS, PIXELS))
    assert images.shape == (5, 3, 2 * PIXELS, PIXELS)


def test_a_folder_without_tests_is_refused_before_a_training(folder):
    shutil.rmtree(folder / "val")
    with pytest.raises(FileNotFoundError, match="val"):
        Photographs(folder, PIXELS, validation=4)


def test_classes_of_both_parts_must_be_the_same(folder):
    """Else the same label would mean two things."""
    shutil.rmtree(folder / "val" / "class-1")
    with pytest.raises(ValueError, match=r"train and val differ in the classes \['class-1'\]"):
        Photographs(folder, PIXELS, validation=4)


def test_too_few_photographs_are_refused(folder):
    with pytest.raises(ValueError, match="has 24 images, and 24 of them are kept for validation"):
        Photographs(folder, PIXELS, validation=24)
