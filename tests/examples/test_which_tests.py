"""What the comparison of encodings trains and tests on."""

from dataclasses import replace

import pytest
import torch
from which import cost
from which.cells import CELL, SIDE, draw, draw_cells
from which.conditions import by_other_rule, cropped, shifted, size_names
from which.contenders import CONTENDERS, READOUTS, add_encoding
from which.plan import CLOSEST, Plan, best_rate
from which.results import Job
from which.sources import Fashion
from which.tiers import TIERS, smallest
from which.training import build, count_right, train

import posenc

TINY = replace(smallest(TIERS["cpu"]), passes=16)


def numbers_of(batches):
    """The images' places in the files."""
    pixels = torch.cat([images[:, 0, 0, 0] for images, _ in batches])
    return (255 * (pixels * 0.353 + 0.286)).round().int().tolist()


def test_fashion_keeps_its_parts_apart(fashion):
    source = Fashion(fashion, pixels=28, validation=20)
    held_out = numbers_of(source.validation(20))
    seen = numbers_of(source.training(0, images=100, passes=100, batch=10))
    assert sorted(held_out + seen) == list(range(120))
    assert sorted(numbers_of(source.tests(0, 40, (28, 28)))) == list(range(40))
    for images, labels in source.tests(1, 7, (28, 28)):
        assert [n % 10 for n in numbers_of([(images, labels)])] == labels.tolist()


def test_a_part_of_the_images_is_seen_more_often(fashion):
    source = Fashion(fashion, pixels=28, validation=20)
    few = numbers_of(source.training(0, images=5, passes=20, batch=5))
    assert len(few) == 20
    assert len({*few}) == 5
    assert {*few} == {*numbers_of(source.training(0, images=5, passes=5, batch=5))}
    assert {*few} != {*numbers_of(source.training(1, images=5, passes=5, batch=5))}


def test_other_sizes_show_the_same_images(fashion):
    source = Fashion(fashion, pixels=28, validation=20)
    (small, labels), (large, same) = (
        next(source.tests(3, 4, size)) for size in ((28, 28), (56, 42))
    )
    assert labels.tolist() == same.tolist()
    assert large.shape == (4, 1, 56, 42)
    back = torch.nn.functional.interpolate(large, (28, 28), mode="bilinear", antialias=True)
    flat = torch.stack([small.flatten(), back.flatten()])
    assert torch.corrcoef(flat)[0, 1] > 0.7  # noise, of which resizing loses some


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks .*train-images.* give --data a folder"):
        Fashion(tmp_path, pixels=28, validation=20)


def test_shifted_images_are_windows_of_the_same():
    images = torch.rand(6, 1, 28, 28)
    moved = shifted(images, torch.Generator().manual_seed(0))
    ways = set()
    for image, other in zip(images[:, 0], moved[:, 0], strict=True):
        inner = [
            (down, right)
            for down in (-4, 4)
            for right in (-4, 4)
            if torch.equal(other[8:20, 8:20], image[8 + down : 20 + down, 8 + right : 20 + right])
        ]
        assert len(inner) == 1
        ways |= {*inner}
    assert len(ways) > 1


def test_cropped_images_are_parts_at_the_same_size():
    ramp = torch.linspace(0, 1, 28).expand(1, 1, 28, 28)
    part = cropped(ramp.repeat(5, 1, 1, 1), torch.Generator().manual_seed(0))
    assert part.shape == (5, 1, 28, 28)
    width = part.amax(dim=(1, 2, 3)) - part.amin(dim=(1, 2, 3))
    torch.testing.assert_close(width, torch.full((5,), 20 / 27), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tier", [*TIERS.values(), *map(smallest, TIERS.values())])
def test_sizes_are_whole_patches(tier):
    sizes = size_names(tier)
    patch = tier.vit["patch_size"]
    assert list(sizes) == ["1.5x", "2x", "3x", "4.57x", "2:1", "1:2"]
    assert all(side % patch == 0 for size, _ in sizes.values() for side in size)
    assert sizes["2:1"][0] == (2 * tier.pixels, tier.pixels)


def test_the_full_tiers_reach_the_size_that_papers_test():
    grids = {n: size_names(t)["4.57x"][0][0] // t.vit["patch_size"] for n, t in TIERS.items()}
    assert grids == {"cpu": 64, "gpu": 64}


@pytest.mark.parametrize("encoding", CONTENDERS)
def test_first_weights_are_the_same(encoding):
    plain = build(TINY, 10, "CLS", seed=3)
    state = plain.state_dict()
    model = add_encoding(build(TINY, 10, "CLS", seed=3), encoding)
    kept = model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in state.items())


@pytest.mark.parametrize("encoding", [name for name, one in CONTENDERS.items() if one.other])
def test_the_other_rule_has_the_same_weights(encoding, fashion):
    """At the trained size it is the same model, at others not."""
    source = Fashion(fashion, pixels=TINY.pixels, validation=20)
    options = {"beside": False, "readout": "CLS", "seed": 0, "rate": 25}
    model = train(TINY, source, encoding, **options)
    other = by_other_rule(TINY, source, model, encoding, "CLS")
    side = TINY.pixels
    with torch.no_grad():
        for size, same in {(side, side): True, (3 * side, 2 * side): False}.items():
            images = torch.randn(2, 1, *size)
            outputs = [posenc.set_layout(one, size)(images) for one in (model, other)]
            assert torch.allclose(*outputs, atol=1e-6) == same


def test_without_another_rule_there_is_none(fashion):
    source = Fashion(fashion, pixels=TINY.pixels, validation=20)
    model = add_encoding(build(TINY, 10, "CLS", seed=0), "swin")
    assert by_other_rule(TINY, source, model, "swin", "CLS") is None


def test_training_is_repeatable_and_learns_the_encoding(fashion):
    source = Fashion(fashion, pixels=TINY.pixels, validation=20)
    options = {"beside": True, "readout": "mean", "seed": 1, "rate": 5}
    one, same = (train(TINY, source, "swin", **options).state_dict() for _ in range(2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    encodings = [name for name in one if name.endswith("table")]
    assert len(encodings) == 1 + TINY.vit["depth"]  # learned, and Swin's of each block
    assert all(one[name].any() for name in encodings)


def test_rates_are_those_of_the_encodings(fashion):
    """A rate of zero leaves an encoding where it was, and trains the rest."""
    source = Fashion(fashion, pixels=TINY.pixels, validation=20)
    options = {"beside": False, "readout": "CLS", "seed": 0, "rate": 0}
    model = train(TINY, source, "swin", **options)
    assert not any(p.any() for _, p in posenc.encoding_parameters(model))
    first = build(TINY, 10, "CLS", seed=0).state_dict()
    assert not torch.equal(model.state_dict()["head.weight"], first["head.weight"])


def test_a_table_beside_has_its_own_rate(fashion):
    """Each of the two stays where it was at a rate of zero, and the other learns."""
    source = Fashion(fashion, pixels=TINY.pixels, validation=20)
    options = {"beside": True, "readout": "mean", "seed": 0}
    for rate, table_rate in ((0, 5), (5, 0)):
        model = train(TINY, source, "swin", **options, rate=rate, table_rate=table_rate)
        moved = {name: bool(p.any()) for name, p in posenc.encoding_parameters(model)}
        assert moved.pop("posenc.learned.table") == bool(table_rate)
        assert {*moved.values()} == {bool(rate)}


def test_the_table_is_tried_where_others_stand_beside_it():
    for parts, expected in ((["beside"], {"swin", "learned"}), (["few"], {"swin"})):
        plan = Plan(TINY, ["swin", "rope"], seeds=1, parts=parts)
        assert {job.encoding for job in plan.rate_trials()} == expected


def test_a_share_is_one_of_the_images_that_there_are(fashion):
    """A folder smaller than the tier's number is no whole that a half could be cut from."""
    source = Fashion(fashion, pixels=TINY.pixels, validation=20)
    seen = []
    training = source.training
    source.training = lambda seed, **sizes: seen.append(sizes) or training(seed, **sizes)
    tier = replace(TINY, images=1_000)
    train(tier, source, "none", beside=False, readout="mean", seed=0, rate=1, share=1 / 4)
    assert seen[0]["images"] == 25  # of 100


def test_costs_are_timed_as_the_tier_runs():
    """In bfloat16 where it trains so."""
    found = []
    model = build(TINY, 10, "mean", seed=0)
    model.head.register_forward_hook(lambda _, inputs, output: found.append(output.dtype))
    for run in (cost.forward, cost.training):
        run(model, replace(TINY, autocast=True))()
        run(model, TINY)()
    assert found == [torch.bfloat16, torch.float32] * 2


def test_count_right_counts():
    model = torch.nn.Flatten()
    logits = torch.eye(4)[[0, 1, 2, 3, 3]]
    batches = [(logits[:2], torch.tensor([0, 0])), (logits[2:], torch.tensor([2, 3, 3]))]
    assert count_right(TINY, model, iter(batches)) == (4, 5)


def test_cells_are_named_by_their_places():
    images, labels = draw(200, torch.Generator().manual_seed(0))
    for image, label in zip(images, labels.tolist(), strict=True):
        small = image[:, ::CELL, ::CELL]
        (red, green, blue) = (channel.nonzero()[0].tolist() for channel in small)
        assert (small.sum(dim=(1, 2)) == 1).all()
        assert label == 2 * (red[0] < green[0]) + (red[1] < blue[1])


def test_cells_have_the_same_content_in_each_class():
    """Patches are the same set in every image, so that places alone tell the class."""
    images, labels = draw(100, torch.Generator().manual_seed(0))
    patches = images.unfold(2, CELL, CELL).unfold(3, CELL, CELL).flatten(4).permute(0, 2, 3, 1, 4)
    rows = patches.reshape(100, SIDE * SIDE, -1)
    order = [sorted(row.tolist()) for row in rows]
    assert all(one == order[0] for one in order)
    assert labels.bincount(minlength=4).min() > 10


def test_cells_are_apart():
    cells = draw_cells(500, torch.Generator().manual_seed(1))
    assert cells.shape == (500, 3)
    assert all(len({*row}) == 3 for row in cells.tolist())


def trials(encoding, shares):
    return {
        Job("rate", encoding, "mean", 1_000, 1.0, rate): {"tests": {"validation": [n, 10]}}
        for rate, n in shares.items()
    }


def test_the_best_rate_is_taken():
    records = trials("swin", {1: 3, 5: 8, 25: 5}) | trials("cpb", {1: 3, 5: 3, 25: 2})
    assert best_rate(records, "swin") == 5
    assert best_rate(records, "cpb") == 1  # the smaller of equals
    assert best_rate(records, "rope") == 1


def test_the_closest_get_more_seeds():
    names = [name for name in CONTENDERS if name != "none"][: CLOSEST + 2]
    records = {
        Job("alone", name, readout, seed): {"tests": {"1x": [place, 100]}, "kinds": ["images"]}
        for place, name in enumerate(names)
        for readout in READOUTS
        for seed in range(2)
    }
    plan = Plan(TINY, names, seeds=2, parts=["images"])
    more = plan.more_of_the_closest(records)
    assert {job.encoding for job in more} == {*names[2:]}
    assert {job.seed for job in more} == {2, 3}
    assert len(more) == 2 * 2 * CLOSEST


def test_a_training_without_the_tests_asked_for_is_not_done():
    job = Job("alone", "swin", "CLS", 0)
    records = {job: {"tests": {}, "kinds": ["images"]}}
    plan = Plan(TINY, ["swin"], seeds=1, parts=["images"])
    assert plan.is_done(job, records)
    other = Plan(TINY, ["swin"], seeds=1, parts=["size"])
    assert not other.is_done(job, records)
    assert other.kinds_of(job, records) == ("images", "size")  # the first is not lost
    assert other.kinds_of(job, {}) == ("size",)
