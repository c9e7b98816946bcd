"""Random retrievals, and the protocol with lists."""

import torch
from search.labels import Labels

METRICS = ["cosine", "euclidean"]


def oracle(distances, query_people, gallery_people, query_cameras, gallery_cameras, max_rank):
    """The protocol with lists, one query at a time: CMC, AP, INP, validity, rankings."""
    precisions, penalties, is_valid, rankings = [], [], [], []
    length = min(max_rank, len(gallery_people))
    found = [0] * length
    for query, row in enumerate(distances.tolist()):
        person, camera = query_people[query].item(), query_cameras[query].item()
        kept = []
        for item in range(len(row)):
            label = gallery_people[item].item(), gallery_cameras[item].item()
            if label != (person, camera):
                kept.append((row[item], item))
        ranking = [item for _, item in sorted(kept)]
        rankings.append(ranking)
        hits, terms, last = 0, [], 0
        for rank, item in enumerate(ranking, 1):
            if gallery_people[item] == person:
                hits += 1
                terms.append(hits / rank)
                last = rank
        is_valid.append(hits > 0)
        if hits == 0:
            continue
        precisions.append(sum(terms) / hits)
        penalties.append(hits / last)
        for rank in range(1, length + 1):
            found[rank - 1] += any(gallery_people[item] == person for item in ranking[:rank])
    cmc = [count / max(1, len(precisions)) for count in found]
    return cmc, precisions, penalties, is_valid, rankings


def random_labels(generator, num_query, num_gallery, people, cameras):
    def draw(most, length):
        return torch.randint(most, (length,), generator=generator)

    return Labels(
        draw(people, num_query) + 1,
        draw(people + 1, num_gallery),  # person 0 is nobody's
        draw(cameras + 1, num_query),  # one camera that the gallery lacks
        draw(cameras, num_gallery),
    )


def random_case(seed):
    """Few or many items, and distances of few values, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    num_query, num_gallery = torch.randint(1, 12, (2,), generator=generator).tolist()
    people, cameras = torch.randint(1, 5, (2,), generator=generator).tolist()
    distances = torch.randint(4, (num_query, num_gallery), generator=generator) / 4
    return distances, random_labels(generator, num_query, num_gallery, people, cameras)


def features_with_duplicates(seed, num_query=23, num_gallery=57, dim=19):
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.randn(num_gallery, dim, generator=generator) + 1
    gallery[20:30] = gallery[5:15]
    query = torch.randn(num_query, dim, generator=generator) + 1
    query[:5] = gallery[3:8]
    labels = random_labels(generator, num_query, num_gallery, people=6, cameras=3)
    return query, gallery, labels


def assert_same_scores(scores, expected):
    for name in ("cmc", "average_precision", "inverse_negative_penalty", "first_match", "is_valid"):
        assert torch.equal(getattr(scores, name), getattr(expected, name)), name
