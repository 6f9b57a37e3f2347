"""Executes the notebooks of docs/notebooks and stores them with what they show.

python -m docs.notebooks
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"


def execute(path: Path) -> nbformat.NotebookNode:
  """The notebook with fresh outputs, run in an empty folder.

  Raises:
    CellExecutionError: a cell failed.
  """
  notebook = nbformat.read(path, as_version=4)
  with tempfile.TemporaryDirectory() as folder:
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)  # the clock: it would change with every run
    if cell.cell_type == "code":  # progress lines say how fast this machine was
      cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
  return notebook


def main() -> None:
  for path in sorted(FOLDER.glob("*.ipynb")):
    nbformat.write(execute(path), path)
    print(path)


if __name__ == "__main__":
  main()
