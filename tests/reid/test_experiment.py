"""The experiment compares like with like; floors and the demo run."""

import json
import re

import experiment
import pytest
import tiny_reid
import torch
from experiment import Job, Kept, run, score_as_trained, score_shifted, score_taller, shifted
from findings import report
from floors import colour_histogram, floors, pixels
from model.network import build_network
from options import RefusedError
from scipy.stats import ttest_rel


def test_shifted_down():
    images = torch.arange(16).view(1, 1, 8, 2)
    moved = shifted(images, 0.25)
    assert moved[0, 0, :, 0].tolist() == [0, 0, 0, 2, 4, 6, 8, 10]
    assert shifted(images, 0.0) is images


@pytest.mark.parametrize("encoding", ["none", *experiment.ENCODINGS[1:]])
def test_other_geometries(data, encoding):
    """The grid is larger while it is tested, and as before afterwards."""
    config = tiny_reid.config(encoding=encoding)
    network = build_network(config, 8).eval()
    for parameter in network.vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    before = score_as_trained(network, config, data)
    grids = []
    hook = network.vit.patch_embed.register_forward_hook(
        lambda *args: grids.append(args[2].shape[1])
    )
    taller = score_taller(network, config, data)
    assert set(grids) == {12}
    hook.remove()
    lower = score_shifted(network, config, data)
    after = score_as_trained(network, config, data)
    assert torch.equal(after.average_precision, before.average_precision)
    for other in (taller, lower):
        assert not torch.equal(other.average_precision, before.average_precision)


def test_one_training(folder):
    record = run(Job("swin", "CLS", 1), tiny_reid.config(epochs=2), folder)
    assert set(record["tests"]) == {"as trained", "shifted", "taller"}
    assert all(0 < scores["mAP"] <= 1 for scores in record["tests"].values())


def records(values):
    """(encoding -> mAP of each seed), as in experiment.json."""
    return [
        {
            "encoding": name,
            "pool": "CLS",
            "seed": seed,
            "tests": {"as trained": {"mAP": value / 100}},
        }
        for name, seeds in values.items()
        for seed, value in enumerate(seeds)
    ]


def test_the_report_pairs_seeds(tmp_path):
    values = {
        "none": [20.0, 31.0, 42.0, 52.0],
        "learned": [30.0, 40.0, 51.0, 60.0],  # seeds differ more than encodings
        "swin": [31.0, 39.0, 52.5, 59.0],
    }
    results = report.gather(records(values)[::-1])
    p = report.p_values(results, "CLS", "as trained")
    raw = {name: ttest_rel(values[name], values["learned"]).pvalue for name in ("none", "swin")}
    assert p["none"] == pytest.approx(2 * raw["none"])  # Benjamini and Hochberg, the smaller of two
    assert p["swin"] == pytest.approx(raw["swin"])
    (line,) = report.conclusions(results, ["CLS"], ["as trained"])
    assert "worse: `none` (-9.0)" in line
    assert "no clear difference: `swin` (+0.1)" in line
    table = report.table(results, "CLS", ["as trained"])
    assert "| `learned` | 45.2 ± 13.0 | - |" in table


@pytest.mark.slow
def test_the_whole_experiment(tmp_path, monkeypatch, capsys):
    options = "--seeds 2 --epochs 2 --train-people 16 --encodings learned human_part"
    monkeypatch.setattr("sys.argv", ["experiment.py", *options.split(), "--out", str(tmp_path)])
    monkeypatch.setattr(experiment, "run_all", lambda jobs, *_: fake(jobs))
    experiment.main()
    text = (tmp_path / "experiment.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert text.count("| `human_part` |") == 2  # CLS and mean
    assert len(json.loads((tmp_path / "experiment.json").read_text())["results"]) == 8
    assert (tmp_path / "experiment.png").stat().st_size > 5_000


def fake(jobs):
    """Not trained: numbers for each job."""
    return [
        {
            **vars(job),
            "tests": {name: {"mAP": 0.3 + 0.01 * i} for i, name in enumerate(experiment.TESTS)},
        }
        for job in jobs
    ]


@pytest.mark.slow
def test_all_trainings_in_processes(folder, tmp_path):
    jobs = [Job("learned", "mean", 0), Job("none", "mean", 0)]
    kept = Kept(tmp_path / "kept.jsonl", {})
    results = experiment.run_all(jobs, tiny_reid.config(epochs=2), [folder], 1, kept)
    assert [record["encoding"] for record in results] == ["learned", "none"]
    assert not kept.path.exists()


@pytest.mark.slow
def test_what_is_finished_is_kept(folder, tmp_path):
    good, bad = Job("none", "mean", 0), Job("nonsense", "mean", 0)
    kept, config = Kept(tmp_path / "kept.jsonl", {"people": 8}), tiny_reid.config(epochs=2)
    with pytest.raises(RefusedError, match=r"1 trainings failed, .*kept.jsonl has the others"):
        experiment.run_all([bad, good], config, [folder], 1, kept)
    assert list(kept.read()) == [good]
    (record,) = experiment.run_all([good], config, [], 1, kept)  # without its data: not again
    assert record["tests"]["as trained"]["mAP"] > 0
    kept.read()
    with pytest.raises(ValueError, match="left from an experiment with other numbers"):
        Kept(kept.path, {"people": 12}).read()


# Floors


def test_floors_use_the_same_evaluation(data):
    found = floors(data, tiny_reid.config())
    names = ["colour histogram", "colour histogram of 6 stripes", "pixels", "random ViT"]
    assert list(found) == names
    assert all(len(scores.is_valid) == len(data.query) for scores in found.values())


def test_colour_histogram():
    red, blue = torch.zeros(1, 3, 12, 4), torch.zeros(1, 3, 12, 4)
    red[:, 0], blue[:, 2] = 200, 200
    above = torch.cat([red[..., :6, :], blue[..., :6, :]], dim=2)
    below = torch.cat([blue[..., :6, :], red[..., :6, :]], dim=2)
    whole = [colour_histogram(x.to(torch.uint8), 1) for x in (above, below)]
    torch.testing.assert_close(*whole)  # where a colour is cannot be seen
    stripes = [colour_histogram(x.to(torch.uint8), 6) for x in (above, below)]
    assert (stripes[0] * stripes[1]).sum() == 0
    assert whole[0].square().sum() == pytest.approx(1)


def test_pixels_do_not_see_the_light():
    image = torch.randint(0, 100, (1, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(pixels(image), pixels(image + 50))


def test_the_demo_expects_a_margin():
    """The goal of its settings, with room for seeds and versions: see `demo.EXPECTED`."""
    import demo

    demo.check_margin(0.34)
    with pytest.raises(RefusedError, match=r"only 33% of what is left to 1; .* at least 33%"):
        demo.check_margin(0.333)


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch, capsys):
    import demo

    monkeypatch.setattr(
        "sys.argv",
        f"demo.py --epochs 4 --train-people 16 --test-people 8 --out {tmp_path}".split(),
    )
    demo.main()
    out = capsys.readouterr().out
    assert re.search(r"floor, pixels: mAP \d", out)
    assert re.search(r"trained, learned\+human_part: mAP \d", out)
    assert re.search(r"\d+% of the time waiting for data", out)
    assert re.search(r"above the best floor by -?\d+% of what is left to 1", out)
    for name in ("rank10", "hardest", "rollout", "bias", "similarity", "parts", "tsne"):
        assert (tmp_path / f"{name}.png").is_file()
    assert set(json.loads((tmp_path / "reid.json").read_text())) > {"pixels", "trained"}
