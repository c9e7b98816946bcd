"""The notebooks run from top to bottom, without a warning; they are stored without outputs.

Outputs would go stale unseen, and make each change a page of numbers: who wants to see them runs
the notebook, which takes seconds.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
STORED = {path.stem: nbformat.read(path, as_version=4) for path in sorted(FOLDER.glob("*.ipynb"))}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The outputs of a notebook by this name, in order."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm misses ipywidgets

    def outputs(name):
        notebook = nbformat.from_dict(STORED[name])
        client = NotebookClient(notebook, resources={"metadata": {"path": tmp_path}})
        client.execute()
        return [output for cell in code_cells(notebook) for output in cell.outputs]

    return outputs


def printed(outputs):
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    return "".join(o.text for o in outputs if o.get("name") == "stdout")


def accuracies(outputs):
    return [float(number) for number in re.findall(r"([\d.]+)% of 500", printed(outputs))]


@pytest.mark.parametrize("name", STORED)
def test_stored_without_outputs(name):
    cells = code_cells(STORED[name])
    assert len(cells) > 4
    assert {cell.execution_count for cell in cells} == {None}
    assert [cell.outputs for cell in cells if cell.outputs] == []


@pytest.mark.examples
def test_from_pretrained_to_export(run):
    outputs = run("pretrained_to_export")
    pretrained, patched, plain = accuracies(outputs)
    assert patched > plain + 5 > pretrained
    assert "ONNX and torch.export agree" in printed(outputs)


@pytest.mark.examples
def test_what_does_it_look_at(run):
    outputs = run("what_does_it_look_at")
    (accuracy,) = accuracies(outputs)
    assert accuracy > 70
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
