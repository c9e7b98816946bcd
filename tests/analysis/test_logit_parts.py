"""Estimates of what parts of the logits vary: against loops, and in simulations of known truth."""

import itertools

import pytest
import torch

from posenc.analysis.logit_parts import PARTS, Means, centered, fixed_sides, part_variances
from posenc.analysis.logit_watcher import Sums

QUERIES, KEYS = ("content", "position", "mean"), ("content", "position")


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def side(name, x, mean):
    """`[windows, n, D]` of one head."""
    grand = mean.mean(dim=(0, 1), keepdim=True).expand_as(mean)
    return {"content": x - mean, "position": mean - grand, "mean": grand}[name]


def loops(query, key, means):
    """Each ordered choice of four groups, one pair of tokens at a time."""
    values = []
    for x, y in itertools.product(QUERIES, KEYS):
        products = []
        for a, b, c, d in itertools.permutations(range(len(means.query)), 4):
            left = [side(x, query, means.query[group]) for group in (a, b)]
            right = [side(y, key, means.key[group]) for group in (c, d)]
            for window, i, j in itertools.product(
                *map(range, query.shape[:2]), range(key.shape[1])
            ):
                first = left[0][window, i] @ right[0][window, j]
                products.append(first * (left[1][window, i] @ right[1][window, j]))
        values.append(torch.stack(products).mean())
    return torch.stack(values)


@pytest.mark.parametrize(("windows", "groups"), [(1, 4), (1, 5), (2, 4)])
def test_as_in_loops(windows, groups):
    heads, n, width = 2, 3, 2
    query = random(windows, heads, n, width) + 1
    key = centered(random(windows, heads, n, width, seed=1))
    means = Means(
        random(groups, windows, heads, n, width, seed=2) + 0.5,
        centered(random(groups, windows, heads, n, width, seed=3)),
    )
    actual = part_variances(query, key, means, fixed_sides(means))
    for head in range(heads):
        of_head = Means(means.query[:, :, head], means.key[:, :, head])
        expected = loops(query[:, head], key[:, head], of_head)
        torch.testing.assert_close(actual[head], expected, rtol=1e-10, atol=1e-12)


def estimates(query, key, groups):
    """Of images `[B, windows, heads, n, D]`, per image: `[heads, parts]`."""
    sums = Sums(groups, query[0])
    members = [*enumerate(zip(query.tensor_split(groups), key.tensor_split(groups), strict=True))]
    for group, (q, k) in members:
        sums.add(group, q, k)
    for group, (q, k) in members:
        sums.measure(group, q, k, {})
    return sums.parts / len(query)


class World:
    """Images are drawn from few patterns, so that every mean over images is known."""

    def __init__(self, patterns=4, n=5, width=3):
        place, content = random(n, width, seed=1), random(patterns, n, width, seed=2)
        content = content - content.mean(dim=0)
        shared = random(width, width, seed=3)
        self.query = 0.7 + place + content
        self.key = centered(0.7 * place.flip(0) + content @ shared + 2.0)

    def truth(self):
        query, key = self.query.mean(0, keepdim=True), self.key.mean(0, keepdim=True)
        grand = query.mean(dim=1, keepdim=True)
        queries = {"content": self.query - query, "position": query - grand}
        queries["mean"] = grand.expand_as(query)
        keys = {"content": self.key - key, "position": key}
        parts = [queries[x] @ keys[y].mT for x, y in itertools.product(QUERIES, KEYS)]
        return torch.stack([part.square().mean() for part in parts])

    def draw(self, images, repetitions, seed=0):
        """`[images, 1, repetitions, n, D]`: each repetition is a head."""
        generator = torch.Generator().manual_seed(seed)
        shape = (images, 1, repetitions)
        chosen = torch.randint(len(self.query), shape, generator=generator)
        return self.query[chosen], self.key[chosen]


def naive(query, key):
    """With the mean over all images in place of the true one."""
    means = query.mean(0, keepdim=True), key.mean(0, keepdim=True)
    grand = means[0].mean(dim=3, keepdim=True)
    queries = {"content": query - means[0], "position": means[0] - grand}
    queries["mean"] = grand.expand_as(means[0])
    keys = {"content": key - means[1], "position": means[1]}
    parts = [queries[x] @ keys[y].mT for x, y in itertools.product(QUERIES, KEYS)]
    return torch.stack([part.square().mean(dim=(0, 1, 3, 4)) for part in parts], dim=-1)


@pytest.mark.parametrize(("images", "groups"), [(5, 5), (8, 6), (13, 6)])
def test_estimates_from_few_images_are_unbiased_and_plain_means_are_not(images, groups):
    world = World()
    query, key = world.draw(images, repetitions=4000)
    actual, truth = estimates(query, key, groups), world.truth()
    error = actual.std(dim=0) / len(actual) ** 0.5
    assert ((actual.mean(0) - truth) / error).abs().max() < 4
    assert (error / truth.clamp(min=0.05)).max() < 0.2  # so that the comparison says something
    biased = naive(query, key)
    wrong = (biased.mean(0) - truth) / (biased.std(dim=0) / len(biased) ** 0.5)
    position = PARTS.index("position.position")
    content = PARTS.index("content.content")
    assert wrong[position] > 10
    assert wrong[content] < -10


def test_many_images_give_the_truth():
    world = World()
    query, key = world.draw(images=600, repetitions=1)
    actual = estimates(query, key, 6)[0]
    torch.testing.assert_close(actual, world.truth(), rtol=0.15, atol=0.03)
