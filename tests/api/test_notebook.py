"""docs/notebook.ipynb runs from its first cell to its picture, on the embedded model."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
PNG = b"\x89PNG"


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def picture(notebook: Any) -> bytes:
    """The last cell's last output."""
    return base64.b64decode(notebook.cells[-1].outputs[-1].data["image/png"])


@pytest.mark.engine
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    for output in outputs(notebook):
        output.clear()
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert picture(notebook).startswith(PNG)
    assert (tmp_path / "runs" / "notebook" / "rows").is_dir()
    printed = [output for output in outputs(notebook) if output.output_type == "stream"]
    # the cells print what they say, and nothing of vLLM's or of a progress bar comes between
    assert {output.name for output in printed} == {"stdout"}
    (lines,) = [output.text.splitlines() for output in printed]
    margins = {line.split()[0]: float(line.split()[4]) for line in lines}
    # the gladder the vector makes it, the likelier Good is beside Bad
    assert margins["-1.5"] < margins["+0.0"] < margins["+1.5"]
