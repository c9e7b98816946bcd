"""The experiment compares like with like and goes on in pieces; floors and the demo run."""

import json
import re

import experiment
import pytest
import tiny_reid
import torch
from experiment import CONTENDERS, configured, provenance, run, run_all
from findings.conditions import CONDITIONS
from findings.kept import Job, Kept
from floors import color_histogram, floors, pixels
from model.network import build_network
from options import RefusedError

import posenc

TINY = tiny_reid.config(epochs=2)


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_are_what_they_are_called(name):
    config = configured(Job(name, "mean", 3), tiny_reid.config())
    assert (config.pool, config.seed) == ("avg", 3)
    vit = build_network(config, 8).vit
    found = [*posenc.patched_encodings(vit).values()] if posenc.is_patched(vit) else []
    classes = {type(encoding).__name__.lower() for encoding in found}
    words = name.partition("(")[0].split("+") if name != "none" else []
    assert len(classes) == len(words)
    for word in words:
        assert any(one.startswith(word.replace("_", "")[:5]) for one in classes), (word, classes)
    assert any(getattr(one, "adaptive", False) for one in found) == ("adaptive" in name)


def test_one_training(folder):
    record = run(Job("body(adaptive)", "CLS", 1), TINY, folder)
    assert list(record["tests"]) == list(CONDITIONS)
    assert all(0 < scores["mAP"] <= 1 for scores in record["tests"].values())
    assert record["positions"] == "positions: body alone"


def typed(monkeypatch, out, *words):
    options = "--epochs 1 --pools mean --train-people 16 --test-people 4 --workers 0 --out"
    monkeypatch.setattr("sys.argv", ["experiment.py", *options.split(" "), str(out), *words])
    experiment.main()


def check_uneven_report(monkeypatch, out, words):
    """What is finished, while a contender has fewer seeds and another one none."""
    names = "--encodings", "none", "learned", "body(adaptive)"
    typed(monkeypatch, out, *names, *words, "--seeds", "9", "--report")
    text = (out / "experiment.md").read_text()
    assert "| encoding | seeds | as trained |" in text
    assert "| `learned` | 2 |" in text
    assert "| `body(adaptive)` | 1 |" in text
    stored = json.loads((out / "experiment.json").read_text())
    assert len(stored["results"]) == 3
    assert stored["command"].endswith("--seeds 9")


def test_the_whole_experiment_in_pieces(tmp_path, monkeypatch, capsys):
    """Smoke: two contenders, two seeds; each piece goes on where the last one was."""
    small = {"people": 8, "height": 32, "width": 16, "vit_args": tiny_reid.config().vit_args}
    words = ["--encodings", "learned", "body(adaptive)", "--config", json.dumps(small)]
    typed(monkeypatch, tmp_path, *words, "--seeds", "1")
    runs = (tmp_path / "experiment.runs.jsonl").read_text()
    typed(monkeypatch, tmp_path, "--encodings", "learned", *words[3:], "--seeds", "2")
    check_uneven_report(monkeypatch, tmp_path, words[3:])
    typed(monkeypatch, tmp_path, *words, "--seeds", "2")
    assert (tmp_path / "experiment.runs.jsonl").read_text().startswith(runs)
    text = (tmp_path / "experiment.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert text.count("| `body(adaptive)` |") == 2  # its scores, and its differences
    for condition in CONDITIONS:
        assert f" {condition} |" in text
    stored = json.loads((tmp_path / "experiment.json").read_text())
    assert [one["seed"] for one in stored["results"]] == [0, 1, 0, 1]
    assert stored["commit"] == provenance()["commit"]
    assert f"torch {torch.__version__}" in stored["versions"]
    assert "--seeds 2" in stored["command"]
    assert (tmp_path / "experiment.png").stat().st_size > 5_000


def test_nothing_to_report(tmp_path, monkeypatch):
    with pytest.raises(RefusedError, match=r"runs\.jsonl has no finished training to report"):
        typed(monkeypatch, tmp_path, "--report")


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--seeds", "0"], "must be at least 1, got 0"),
        (["--epochs", "-3"], "must be at least 1, got -3"),
        (["--config", '{"color": 3}'], "must be an object of options of train.py such as"),
        (["--config", "height"], "invalid _options value: 'height'"),
        (["--encodings", "bodies"], "invalid choice: 'bodies'"),
    ],
)
def test_options_that_do_not_exist(tmp_path, monkeypatch, capsys, words, rule):
    with pytest.raises(SystemExit, match=r"^2$"):
        typed(monkeypatch, tmp_path / "out", *words)
    assert rule in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.examples
@pytest.mark.slow
def test_trainings_in_processes(tmp_path):
    """One that fails costs no other."""
    good, bad = Job("none", "mean", 0), Job("nonsense", "mean", 0)
    kept = Kept(tmp_path / "kept.jsonl", {"people": 8})
    with pytest.raises(RefusedError, match=r"1 trainings failed, .*kept.jsonl has the others"):
        run_all([bad, good], TINY, tiny_reid.RECIPE, kept, workers=1)
    assert list(kept.read()) == [good]
    assert run_all([good], TINY, None, kept).keys() == {good}  # without data: not again


@pytest.mark.parametrize("workers", [0, 1])
def test_no_training_begins_late(tmp_path, workers):
    kept, job = Kept(tmp_path / "kept.jsonl", {}), Job("learned", "mean", 0)
    assert run_all([job], TINY, tiny_reid.RECIPE, kept, workers=workers, minutes=0) == {}


def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "run_all", lambda jobs, *_, **__: dict.fromkeys(jobs[:1]))
    typed(monkeypatch, tmp_path, "--encodings", "none", "peg", "--seeds", "2")
    assert "1 of 4 trainings are done, " in capsys.readouterr().out
    assert not (tmp_path / "experiment.md").exists()


# What is kept


def test_lines_that_a_kill_cut_short(tmp_path):
    kept = Kept(tmp_path / "out" / "kept.jsonl", {"people": 8})
    assert kept.read() == {}
    records = [{**Job("peg", "CLS", seed)._asdict(), "seconds": 3.0} for seed in range(2)]
    for record in records:
        kept.add(record)
    assert list(kept.read().values()) == records
    with kept.path.open("a") as file:
        file.write('{"encoding": "pe')
    assert list(kept.read().values()) == records
    kept.add({**records[0], "seed": 5})
    assert [job.seed for job in kept.read()] == [0, 1, 5]


def test_another_experiment(tmp_path):
    Kept(tmp_path / "kept.jsonl", {"people": 8}).read()
    with pytest.raises(ValueError, match="left from an experiment with other numbers; remove it"):
        Kept(tmp_path / "kept.jsonl", {"people": 12}).read()


# Floors


def test_floors_use_the_same_evaluation(data):
    found = floors(data, tiny_reid.config())
    names = ["color histogram", "color histogram of 6 stripes", "pixels", "random ViT"]
    assert list(found) == names
    assert all(len(scores.is_valid) == len(data.query) for scores in found.values())


def test_color_histogram():
    red, blue = torch.zeros(1, 3, 12, 4), torch.zeros(1, 3, 12, 4)
    red[:, 0], blue[:, 2] = 200, 200
    above = torch.cat([red[..., :6, :], blue[..., :6, :]], dim=2)
    below = torch.cat([blue[..., :6, :], red[..., :6, :]], dim=2)
    whole = [color_histogram(x.to(torch.uint8), 1) for x in (above, below)]
    torch.testing.assert_close(*whole)  # where a color is cannot be seen
    stripes = [color_histogram(x.to(torch.uint8), 6) for x in (above, below)]
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


@pytest.mark.examples
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
