"""What is said of a network's positions: no second table goes unnoticed."""

import json

import pytest
import tiny_reid
from findings.report import write_report
from model.network import build_network
from model.positions import describe_positions, has_own_table
from training.run import train

OWN = json.dumps({**tiny_reid.VIT, "pos_embed": "learn"})


@pytest.mark.parametrize(
    ("encoding", "vit", "said"),
    [
        ("none", None, "positions: none"),
        ("peg", None, "positions: peg alone"),
        ("none", OWN, "positions: the model's own table alone"),
        ("peg", OWN, "positions: the model's own table, and beside it peg"),
        (
            "learned+peg",
            OWN,
            "positions: the model's own table, and beside it learned+peg; learned is a second "
            "table, which starts at zero",
        ),
    ],
)
def test_said(encoding, vit, said):
    config = tiny_reid.config(encoding=encoding, **({"vit_args": vit} if vit else {}))
    network = build_network(config, 4)
    assert has_own_table(network.vit) == bool(vit)
    assert describe_positions(network.vit, encoding) == said


def test_a_training_says_so(data, tmp_path, capsys):
    train(tiny_reid.config(epochs=1, vit_args=OWN, encoding="peg"), data, tmp_path)
    assert "positions: the model's own table, and beside it peg" in capsys.readouterr().out


@pytest.mark.parametrize("positions", ["alone", "beside its own"])
def test_the_report_says_so(tmp_path, positions):
    tests = {"as trained": {"mAP": 0.3}}
    record = {"encoding": "peg", "pool": "CLS", "seed": 0, "tests": tests}
    report = {
        "config": {"vit": "v", "vit_args": "{}", "height": 4, "width": 2, "epochs": 1},
        "recipe": {"train_people": 4, "test_people": 4, "photos": 2},
        **{"command": "c", "commit": "d", "versions": "e", "cpu_minutes": 2.5},
        **{"positions": positions, "results": [record]},
    }
    text = write_report(report, tmp_path)
    assert ("each encoding stands beside it" in text) == (positions != "alone")
    assert "2.5 minutes of one thread" in text
