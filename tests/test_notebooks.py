"""The notebooks of the docs run from beginning to end, and are stored with what they show."""

import nbformat
import pytest

from docs import notebooks

PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_notebook_runs(path):
  cells = [c for c in notebooks.execute(path).cells if c.cell_type == "code"]
  assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_notebook_is_stored_with_its_outputs(path):
  cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
  shown = [o for c in cells for o in c.outputs]
  assert all(c.execution_count for c in cells), "run python -m docs.notebooks"
  assert any(o.output_type == "display_data" for o in shown)
  assert not [o for o in shown if o.output_type == "error" or o.get("name") == "stderr"]


def test_there_are_notebooks():
  assert [p.stem for p in PATHS] == ["forensics_of_your_checkpoint", "train_and_compare"]
