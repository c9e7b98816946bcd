"""A trained network is scored on its own data, on other data, and without photos to train on."""

import csv
import json
import shutil

import evaluate
import floors
import pictures
import pytest
import torch
from data.batches import photo_loader
from data.market import read_dataset
from matplotlib import pyplot as plt
from search.features import embed, embed_photos
from search.labels import Labels
from search.reranking import rerank
from search.retrieval import score_distances, score_features
from training.checkpoints import load_network
from training.run import SCORES


def run(monkeypatch, capsys, script, *words):
    monkeypatch.setattr("sys.argv", [script.__name__, *map(str, words)])
    script.main()
    return capsys.readouterr().out


@pytest.fixture
def without_train(folder, tmp_path):
    path = tmp_path / "questions"
    for name in ("query", "bounding_box_test"):
        shutil.copytree(folder / name, path / name)
    return path


@pytest.fixture
def other(tmp_path):
    """Other people, in larger photos that are not twice as high as wide, under names of Duke."""
    from PIL import Image

    rng = torch.Generator().manual_seed(0)
    for split, cameras in (("query", (1,)), ("bounding_box_test", (1, 2, 3, 4, 5, 6))):
        (tmp_path / "other" / split).mkdir(parents=True)
        for person in (7, 1044, 2000, 31):
            for camera in cameras:
                pixels = torch.randint(0, 256, (150, 100, 3), generator=rng, dtype=torch.uint8)
                name = f"{person:04d}_c{camera}_f0000001.jpg"
                Image.fromarray(pixels.numpy()).save(tmp_path / "other" / split / name)
    return tmp_path / "other"


def test_the_training_had_the_same_scores(trained, folder, tmp_path, monkeypatch, capsys):
    words = trained, "--data", folder, "--out", tmp_path / "new"
    said = json.loads(run(monkeypatch, capsys, evaluate, *words, "--json"))
    known = json.loads((trained / SCORES).read_text())
    for name in ("mAP", "mINP", "rank-1", "rank-5", "rank-10", "queries"):
        assert said[name] == known[name], name
    assert json.loads((tmp_path / "new" / "scores.json").read_text()) == said
    assert (said["metric"], said["rerank"], said["flip"]) == ("cosine", False, False)


def test_what_is_written(trained, data, folder, tmp_path, monkeypatch, capsys):
    out = run(monkeypatch, capsys, evaluate, trained, "--data", folder, "--out", tmp_path)
    queries = list(csv.DictReader((tmp_path / "queries.csv").read_text().splitlines()))
    assert [row["photo"] for row in queries] == [photo.path.name for photo in data.query]
    scores = evaluate.evaluate(trained, data)
    assert [float(row["AP"]) for row in queries] == scores.average_precision.tolist()
    first = [int(row["first match"]) for row in queries]
    curve = list(csv.DictReader((tmp_path / "cmc.csv").read_text().splitlines()))
    for row in curve:
        share = sum(rank <= int(row["rank"]) for rank in first) / len(first)
        assert float(row["found"]) == pytest.approx(share)
    assert f"mAP {100 * scores.mean_average_precision:.1f}, mINP" in out
    assert "8 of 8 queries have a match" in out
    assert plt.imread(tmp_path / "cmc.png")[..., :3].std() > 0.05
    ranks, found = (line.split()[1:] for line in out.splitlines()[1:3])
    assert found == [f"{100 * scores.rank(int(rank)):.1f}" for rank in ranks]


def test_a_query_without_a_match_has_no_scores(data):
    lonely = data.query[0].person
    gallery = [photo for photo in data.gallery if photo.person != lonely]
    labels = Labels.of(data.query, gallery)
    scores = score_distances(torch.rand(len(data.query), len(gallery)), labels)
    _, *rows = evaluate.by_query(scores, data)
    assert [row[3:] == ("", "", "") for row in rows] == [p.person == lonely for p in data.query]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_options_change_what_they_say(trained, data, monkeypatch, metric):
    network, labels = load_network(trained), Labels.of(data.query, data.gallery)
    plain = [embed_photos(network, part, (32, 16)) for part in (data.query, data.gallery)]
    found = evaluate.evaluate(trained, data, metric=metric)
    expected = score_features(*plain, labels, metric=metric)
    assert torch.equal(found.average_precision, expected.average_precision)
    monkeypatch.setattr(
        evaluate.reranking.rerank, "__kwdefaults__", {**rerank.__kwdefaults__, "k1": 4, "k2": 2}
    )
    again = evaluate.evaluate(trained, data, metric=metric, rerank=True)
    expected = score_distances(rerank(*plain, metric=metric), labels)
    assert torch.equal(again.average_precision, expected.average_precision)
    assert not torch.equal(again.average_precision, found.average_precision)


def test_flipped_features_do_not_depend_on_the_side(trained, data):
    network = load_network(trained)
    batches = list(photo_loader(data.query, (32, 16)))
    mirrored = [(images.flip(-1), at) for images, at in batches]
    plain, other = (torch.cat(embed(network, b)) for b in (batches, mirrored))
    both, same = (torch.cat(embed(network, b, flip=True)) for b in (batches, mirrored))
    assert not torch.allclose(plain, other)
    torch.testing.assert_close(both, same)
    torch.testing.assert_close(both, (plain + other) / 2)


def test_other_people_in_other_sizes(trained, other, tmp_path, monkeypatch, capsys):
    words = trained, "--data", other, "--kind", "dukemtmc", "--json", "--out", tmp_path
    said = json.loads(run(monkeypatch, capsys, evaluate, *words))
    assert said["queries"] == 4
    assert 0 < said["mAP"] < 1
    data = read_dataset(other, "dukemtmc", needs_train=False)
    assert embed_photos(load_network(trained), data.query, (32, 16)).shape == (4, 24)


def test_query_and_gallery_alone_are_enough(
    trained, folder, without_train, tmp_path, monkeypatch, capsys
):
    for script, words in (
        (evaluate, (trained, "--data", "{}", "--json", "--out", tmp_path / "out")),
        (floors, ("{}",)),
    ):
        said = [
            run(monkeypatch, capsys, script, *(str(word).format(path) for word in words))
            for path in (folder, without_train)
        ]
        assert said[0].replace(str(folder), str(without_train)) == said[1]
    names = ["parts", "rank10"]
    words = trained, "--data", without_train, "--out", tmp_path, "--only", *names
    run(monkeypatch, capsys, pictures, *words)
    assert all((tmp_path / f"{name}.png").is_file() for name in names)


def test_a_training_still_needs_its_photos(without_train):
    with pytest.raises(FileNotFoundError, match="the folder bounding_box_train was expected"):
        read_dataset(without_train)


def test_lists_of_msmt17_may_be_missing(tmp_path):
    (tmp_path / "test").mkdir()
    for name in ("query", "gallery"):
        (tmp_path / "test" / f"{name}.jpg").touch()
        (tmp_path / "test" / "0000_000_01_x.jpg").touch()
        (tmp_path / f"list_{name}.txt").write_text("0000_000_01_x.jpg 0\n")
    assert read_dataset(tmp_path, "msmt17", needs_train=False).train == ()
    with pytest.raises(FileNotFoundError, match="train or mask_train_v2"):
        read_dataset(tmp_path, "msmt17")


def test_nobody_can_be_found(trained, data, tmp_path, without_train, monkeypatch, capsys):
    for photo in (without_train / "query").iterdir():
        photo.rename(photo.with_name(f"9{photo.name}"))
    for script, words in (
        (evaluate, (trained, "--data", without_train, "--out", tmp_path / "out")),
        (floors, (without_train,)),
        (pictures, (trained, "--data", without_train, "--out", tmp_path / "out")),
    ):
        with pytest.raises(ValueError, match="none of 8 queries has a photo of its person"):
            run(monkeypatch, capsys, script, *words)
    assert not (tmp_path / "out").exists()
