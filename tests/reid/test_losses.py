import doctest
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from model import losses
from model.losses import PatchDistance, batch_hard_triplet, identity_loss, patch_triplet
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

GOLDEN = [
    path
    for path in sorted((Path(__file__).parents[1] / "golden").glob("reid_triplet_*.npz"))
    if not path.stem.endswith("hard0")  # weighted, in test_mining.py
]
METRICS = ["euclidean", "cosine"]
MARGINS = [0.3, 0.0, None]
PEOPLE = torch.tensor([3, 3, 8, 8, 8, 1, 1, 3])


def random_patches(seed=0, patches=6, dim=5, **options):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(PEOPLE), patches, dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(**options)


def distance(a, b, metric):
    if metric == "cosine":
        return 2 - 2 * (a @ b) / (a.norm() * b.norm())
    return (a - b).norm()


def oracle(patches, people, margin, metric):
    """The formula in loops over pairs of images and over patches."""
    losses = []
    for anchor, person in enumerate(people.tolist()):
        positives, negatives = [], []
        for other, other_person in enumerate(people.tolist()):
            if other == anchor:
                continue
            pairs = zip(patches[anchor], patches[other], strict=True)
            mean = sum(distance(a, b, metric) for a, b in pairs) / patches.shape[1]
            (positives if person == other_person else negatives).append(mean)
        gap = max(positives) - min(negatives)
        losses.append((1 + gap.exp()).log() if margin is None else (gap + margin).clamp(min=0))
    return torch.stack(losses).mean()


def loss_and_gradient(loss, features, *rest):
    features = features.detach().clone().requires_grad_()
    value = loss(features, *rest)
    value.backward()
    return value.detach(), features.grad


def of_golden_case(path):
    """The loss of a case, by the options in its name: `m0.0` and `soft` are the soft margin."""
    name = path.stem
    margin = None if "soft" in name or "m0.0" in name else 0.5 if "margin0.5" in name else 0.3
    options = {"metric": "cosine" if "cos1" in name else "euclidean"}
    if "ragged" in name:
        options["allow_single"] = True
    if "hard0.1" in name:
        options["hard_factor"] = 0.1
    loss = batch_hard_triplet(margin, **options)
    if "norm1" in name:
        return lambda features, people: loss(F.normalize(features), people)
    return loss


# Against others


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    stored = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    loss, gradient = loss_and_gradient(
        of_golden_case(path), stored["feat"].double(), stored["labels"].long()
    )
    torch.testing.assert_close(loss, stored["loss"].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, stored["grad_feat"].double(), rtol=0, atol=1e-7)
    assert stored["grad_feat"].abs().max() > 0.01


def test_golden_cases_are_there():
    assert len(GOLDEN) == 21


def test_docstrings():
    assert doctest.testmod(losses) == (0, 7)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("metric", METRICS)
def test_formula(metric, margin):
    patches = random_patches(dim=4)
    features = patches[:, 0]
    loss = batch_hard_triplet(margin, metric)
    for ours, given in ((loss, features), (patch_triplet(margin, metric), patches)):
        expected = loss_and_gradient(
            lambda x: oracle(x if x.ndim == 3 else x[:, None], PEOPLE, margin, metric), given
        )
        found = loss_and_gradient(ours, given, PEOPLE)
        torch.testing.assert_close(found, expected)
        assert expected[1].abs().max() > 0.01


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_identity_loss_is_its_formula(smoothing):
    logits = random_patches(patches=1, dim=9)[:, 0]
    labels = PEOPLE.clamp(max=8)
    target = torch.full_like(logits, smoothing / 9)
    target[torch.arange(8), labels] += 1 - smoothing
    expected = -(target * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    torch.testing.assert_close(identity_loss(logits, labels, smoothing), expected)


# Patches


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("metric", METRICS)
def test_one_patch_is_a_feature(metric, margin):
    patches = random_patches(patches=1)
    torch.testing.assert_close(
        loss_and_gradient(patch_triplet(margin, metric), patches, PEOPLE)[1][:, 0],
        loss_and_gradient(batch_hard_triplet(margin, metric), patches[:, 0], PEOPLE)[1],
    )


@pytest.mark.parametrize("metric", METRICS)
def test_patches_meet_those_of_their_place(metric):
    patches = random_patches()
    loss = patch_triplet(metric=metric)(patches, PEOPLE)
    together = patches[:, torch.randperm(6, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(patch_triplet(metric=metric)(together, PEOPLE), loss)
    apart = torch.stack([image.roll(row, 0) for row, image in enumerate(patches)])
    assert (patch_triplet(metric=metric)(apart, PEOPLE) - loss).abs() > 1e-3


@pytest.mark.parametrize("metric", METRICS)
def test_patch_distances_of_two_batches(metric):
    patches = random_patches()
    query, reference = patches[:3], patches[3:]
    found = PatchDistance(6, metric)(query.flatten(1), reference.flatten(1))
    assert found.shape == (3, 5)
    pairs = zip(query[2], reference[4], strict=True)
    expected = sum(distance(a, b, metric) for a, b in pairs) / 6
    torch.testing.assert_close(found[2, 4], expected)


@pytest.mark.parametrize("metric", METRICS)
def test_no_tensor_holds_the_differences_of_patches(metric):
    """What autograd keeps is of the size of the input or of one number a pair and patch."""
    batch, patches, dim = 32, 12, 40
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    images = torch.randn(batch, patches, dim, requires_grad=True)
    people = torch.arange(batch) // 4
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        patch_triplet(metric=metric)(images, people).backward()
    assert max(kept) <= batch * patches * max(batch, dim + 2)


@pytest.mark.parametrize("metric", METRICS)
def test_patches_of_small_batches_go_by_matrix_products_too(metric):
    """On CUDA, `_cdist_backward` makes the differences that the test above looks for."""
    names = set()

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.add(operation.overloadpacket.__name__)
            return operation(*args, **(kwargs or {}))

    patches = random_patches().requires_grad_()
    with Names():
        patch_triplet(metric=metric)(patches, PEOPLE).backward()
    assert {name for name in names if "dist" in name} == {"_euclidean_dist"}


# Numbers


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("batch", [8, 64])
def test_equal_features_have_finite_gradients(metric, margin, batch):
    people = torch.arange(batch) // 4
    one = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    distinct = torch.randn(batch, 6, 16, generator=torch.Generator().manual_seed(1))
    distinct[::2] = distinct[1::2]
    for patches in (one.expand(batch, -1, -1), torch.zeros(batch, 6, 16), distinct):
        for loss, features in (
            (patch_triplet(margin, metric), patches),
            (batch_hard_triplet(margin, metric), patches[:, 0]),
        ):
            value, gradient = loss_and_gradient(loss, features, people)
            assert value.isfinite()
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 1  # a unit vector over the size of the batch, and less


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("margin", MARGINS)
def test_gradients(metric, margin):
    patches = random_patches(dim=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: patch_triplet(margin, metric)(x, PEOPLE), patches)
    features = patches[:, 0].detach().requires_grad_()
    loss = batch_hard_triplet(margin, metric)
    assert torch.autograd.gradcheck(lambda x: loss(x, PEOPLE), features)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype, autocast):
    patches, logits = random_patches(dtype=dtype), random_patches(dim=9, dtype=dtype)[:, 0]
    for metric in METRICS:
        for loss, given in (
            (patch_triplet(metric=metric), patches),
            (batch_hard_triplet(metric=metric), patches[:, 0]),
            (identity_loss, logits),
        ):
            expected = loss(given.float(), PEOPLE)
            with torch.autocast("cpu", dtype, enabled=autocast):
                found, gradient = loss_and_gradient(loss, given, PEOPLE)
            assert torch.equal(found, expected)
            assert gradient.dtype == dtype


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("margin", MARGINS)
def test_what_is_not_a_number_is_not_lost(metric, margin):
    patches = random_patches()
    patches[2, 1, 3] = torch.nan
    assert patch_triplet(margin, metric)(patches, PEOPLE).isnan()
    assert batch_hard_triplet(margin, metric)(patches[:, 1], PEOPLE).isnan()


def test_labels_may_be_of_any_integers():
    features = random_patches()[:, 0]
    expected = batch_hard_triplet()(features, PEOPLE)
    assert torch.equal(batch_hard_triplet()(features, PEOPLE.to(torch.int16)), expected)
    assert torch.equal(batch_hard_triplet()(features, PEOPLE * 1000 - 500), expected)
    logits = random_patches(dim=9)[:, 0]
    expected = identity_loss(logits, PEOPLE)
    assert torch.equal(identity_loss(logits, PEOPLE.to(torch.int16)), expected)


# Errors


@pytest.mark.parametrize("make", [batch_hard_triplet, patch_triplet])
def test_options_that_do_not_exist(make):
    with pytest.raises(ValueError, match="one of euclidean, cosine, got 'manhattan'"):
        make(metric="manhattan")
    for margin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"margin must be .* got {margin}"):
            make(margin)


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ([5, 5, 5, 5], "got 4 images of 1 people, with a single image of []"),
        ([5, 5, 5, 9], "got 4 images of 2 people, with a single image of [9]"),
        ([1, 2, 3, 4], "got 4 images of 4 people, with a single image of [1, 2, 3, 4]"),
    ],
)
def test_batches_without_triplets(people, message):
    people = torch.tensor(people)
    with pytest.raises(ValueError, match=re.escape(message)):
        batch_hard_triplet()(torch.rand(4, 3), people)
    with pytest.raises(ValueError, match=re.escape(message)):
        patch_triplet()(torch.rand(4, 2, 3), people)


@pytest.mark.parametrize("people", [PEOPLE[:7], PEOPLE[:, None], PEOPLE.float()])
def test_people_that_do_not_fit(people):
    message = re.escape(f"got [8, 3] and {people.dtype} {list(people.shape)}")
    with pytest.raises(ValueError, match=message):
        batch_hard_triplet()(torch.rand(8, 3), people)


@pytest.mark.parametrize("shape", [(8,), (8, 2, 3, 4), (8, 0, 3), (8, 3, 0), (8, 0)])
def test_features_that_do_not_fit(shape):
    message = re.escape(f"none of them 0, and integer people [B], got {list(shape)}")
    if len(shape) != 3:
        with pytest.raises(ValueError, match=r"features \[B, D\], " + message):
            batch_hard_triplet()(torch.rand(shape), PEOPLE)
    with pytest.raises(ValueError, match=r"patches \[B, P, C\], " + message):
        patch_triplet()(torch.rand(shape), PEOPLE)


@pytest.mark.parametrize("labels", [[0, 1, 5], [-1, 0, 0]])
def test_labels_outside_the_logits(labels):
    message = f"must be 0 to 4 for 5 logits, got {min(labels)} to {max(labels)}"
    with pytest.raises(ValueError, match=message):
        identity_loss(torch.rand(3, 5), torch.tensor(labels))


@pytest.mark.parametrize("labels", [torch.zeros(2).long(), torch.zeros(3), torch.zeros(3, 5)])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(ValueError, match=r"integer labels \[B\], got \[3, 5\] and "):
        identity_loss(torch.rand(3, 5), labels)


@pytest.mark.parametrize("shape", [(3,), (3, 5, 2)])
def test_logits_that_do_not_fit(shape):
    with pytest.raises(
        ValueError, match=re.escape(f"logits [B, K] and integer labels [B], got {list(shape)}")
    ):
        identity_loss(torch.rand(shape), torch.zeros(3).long())


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range(smoothing):
    with pytest.raises(ValueError, match=f"less than 1, got {smoothing}"):
        identity_loss(torch.rand(1, 5), torch.tensor([0]), smoothing)
