"""What the script measures of models whose positions are known, and that it runs through."""

import json

import digits
import positions_figure
import pytest
import torch
import what_positions_learn as example
from random_encodings import randomize_encodings

from posenc import TokenLayout
from posenc.analysis import capture_attention

LAYOUT = TokenLayout(7, 7, prefix=1)


def looked_into(name):
    """An untrained model with random positions, what was captured, and its own positions."""
    model = digits.add_encoding(digits.build_vit("mean", 0), name).eval()
    if name != "none":
        randomize_encodings(model)
    torch.manual_seed(0)
    with torch.no_grad(), capture_attention(model) as captured:
        model(torch.randn(6, 1, 28, 28))
    return model, captured, *example.own_positions(model, captured, LAYOUT)


def test_a_bias_of_offsets_is_invariant():
    _, captured, kind, own = looked_into("swin")
    assert kind == "bias"
    assert [tuple(bias.shape) for bias in own] == [(4, 50, 50)] * 2
    assert example.properties(own, LAYOUT)["invariance"] == pytest.approx(1.0, abs=1e-3)
    means = [weights.mean(dim=0) for weights in captured.attention.values()]
    assert example.properties(means, LAYOUT)["invariance"] < 0.99  # content, too


def test_the_similarity_of_a_random_table_is_not():
    _, _, kind, (similar,) = looked_into("learned")
    assert kind == "table"
    found = example.properties([similar], LAYOUT)
    assert found["symmetry"] == pytest.approx(1.0, abs=1e-4)
    assert found["invariance"] < 0.8  # its diagonal is one offset
    assert found["monotonicity"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", ["none", "peg", "rope"])
def test_without_a_bias_or_table(name):
    _, _, kind, own = looked_into(name)
    assert (kind, own) == (None, [])
    assert example.own_map(kind, own, LAYOUT, (3, 3)) is None


def test_hidden_pairs_have_no_properties():
    _, captured, kind, own = looked_into("lookhere")
    assert set(example.properties(own, LAYOUT).values()) == {None}
    shown = example.own_map(kind, own, LAYOUT, (3, 3))
    assert shown.shape == (7, 7)
    assert shown.isinf().any()
    assert None not in example.properties(list(captured.attention.values()), LAYOUT).values()


def test_the_map_is_that_of_the_strongest_head():
    bias = torch.zeros(2, 50, 50)
    bias[0, 25, 8] = 1.0
    bias[1, 25, 1 + 2 * 7 + 4] = -3.0  # what the center gives to the patch at (2, 4)
    shown = example.own_map("bias", [bias], LAYOUT, (3, 3))
    assert divmod(int(shown.argmin()), 7) == (2, 4)
    similar = torch.arange(49.0 * 49).view(49, 49)
    assert example.own_map("table", [similar], LAYOUT, (3, 3))[0, 1] == 24 * 49 + 1


def test_shares_leave_nothing_out():
    model = looked_into("irpe")[0]
    found = example.shares(model, torch.randn(12, 1, 28, 28))
    assert len(found) == 2
    for block in found:
        assert sum(block.values()) == pytest.approx(1.0, abs=1e-3)
        assert abs(block["bias"]) > 0.01
    assert example.shares(looked_into("convit")[0], torch.randn(12, 1, 28, 28)) is None


def test_the_probe_reads_sines_and_no_noise():
    images = torch.randn(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with_sines, without = (
        example.probes(digits.add_encoding(digits.build_vit("mean", 0), name).eval(), images)
        for name in ("sinusoidal", "none")
    )
    assert min(with_sines[0].values()) > 0.9
    assert max(without[0].values()) < 0.1


def row(**changed):
    block = {"content": 0.5, "content x position": 0.2, "position": 0.2, "bias": 0.2}
    shares = [{**block, "interaction": -0.1}, {**block, "interaction": -0.3}]
    three = {"invariance": 1.0, "monotonicity": 0.75, "symmetry": None}
    probe = [{"row": 0.5, "column": 0.7}, {"row": 0.25, "column": 0.75}]
    whole = {"encoding": "swin", "accuracy": 91.2, "own": {"kind": "bias", **three}}
    return {
        **whole,
        **{"attention": three, "R2": probe, "shares": shares, "distance": [2.0, 3.0]},
        **changed,
    }


def test_cells_of_the_table():
    assert example.cells(row()) == [
        *("`swin`", "91.2", "bias 1.00 / 0.75 / -", "1.00 / 0.75 / -", "0.60 / 0.50"),
        *("0.50", "0.20", "0.20", "0.20", "-0.20", "2.00 / 3.00"),
    ]
    assert example.cells(row(own=None, shares=None))[2] == "-"
    undefined = [dict.fromkeys(example.SHARES)] * 2  # a head without variance
    for shares in (None, undefined):
        assert example.cells(row(shares=shares))[5:10] == ["-"] * 5
    assert len(example.markdown_table([row()])[0].split("|")) == 13


def test_bars_add_up_to_the_whole():
    axes = positions_figure.plt.figure().subplots()
    undefined = row(shares=[dict.fromkeys(example.SHARES)] * 2)
    rows = [row(), undefined, row(shares=None)]
    positions_figure.draw_shares(axes, rows, [3.0, 11.0, 19.0])
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert max(map(max, ends)) == pytest.approx(1.1)
    assert min(map(min, ends)) == pytest.approx(-0.2)
    reasons = [text.get_text() for text in axes.texts]
    assert reasons == ["queries see one key", "two attentions: no one logit"]
    positions_figure.plt.close("all")


@pytest.mark.examples
@pytest.mark.slow
def test_the_script_runs_through(tmp_path, monkeypatch, capsys):
    chosen = ["none", "learned", "convit", "lookhere", "swin"]
    options = ["--quick", "--workers", "1", "--out", str(tmp_path), "--encodings", *chosen]
    monkeypatch.setattr("sys.argv", ["what_positions_learn.py", *options])
    # Without another process, which would import everything again.
    monkeypatch.setattr(
        example, "each_run", lambda work, runs, workers: ((run, work(run)) for run in runs)
    )
    threads = torch.get_num_threads()
    example.main()
    torch.set_num_threads(threads)
    report = json.loads((tmp_path / "positions.json").read_text())
    assert sorted(each["encoding"] for each in report["rows"]) == sorted(chosen)
    accuracies = [each["accuracy"] for each in report["rows"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "--quick" in report["command"]
    assert "seed 0" in report["training"]
    page = (tmp_path / "positions.md").read_text()
    out = capsys.readouterr().out
    for name in chosen:
        assert f"| `{name}` |" in page
        assert f"| `{name}` |" in out
    assert (tmp_path / "positions.png").stat().st_size > 20_000


def test_too_little_training_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["what_positions_learn.py", "--epochs", "0.001"])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert "--epochs 0.001 is less than one batch" in capsys.readouterr().err
