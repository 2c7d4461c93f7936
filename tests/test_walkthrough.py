"""The notebook runs from top to bottom, and its bugs have the effects that it tells of."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EFFECTS = """
assert last(hacked, "correct") > last(hacked, "accuracy") + 0.2
assert last(hacked, "accuracy") < last(right, "accuracy") - 0.1
assert last(ungated, "format") < 0.2 and practice[19]["format"] > 0.7
assert last(endless, "truncated") > last(ending, "truncated") + 0.1
"""


def test_the_walkthrough_runs_and_is_small():
    nbformat = pytest.importorskip("nbformat", reason="pip install nbclient ipykernel")
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    for name in ("ipykernel", "matplotlib"):
        pytest.importorskip(name, reason=f"pip install {name}")
    path = ROOT / "walkthrough.ipynb"
    assert path.stat().st_size < 2**20
    notebook = nbformat.read(path, as_version=4)
    assert any("image/png" in str(cell.get("outputs")) for cell in notebook.cells)
    notebook.cells.append(nbformat.v4.new_code_cell(EFFECTS))
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}
    ).execute()
