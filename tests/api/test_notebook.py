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


def test_the_outputs_that_are_kept_are_whole_and_small() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == [1, 2, 3, 4, 5]
    assert picture(notebook).startswith(PNG)
    assert NOTEBOOK.stat().st_size < 200_000


# In the kernel, before the first cell: what stands in for vLLM.
FAKES = """
from tests.run import fake
from vsteer.api import engine
from tests import fake_engine
from vsteer.run import start
start.load_vllm = lambda plan, *_, **__: fake.fake_engine(plan)
engine.load_named = lambda folder, *_: fake_engine.FakeEngine(folder, layers=30, hidden_size=576)
hashed = fake_engine.number
fake_engine.number = lambda *content: 1.0 if content[0] == "too long" else hashed(*content)
"""


def executed(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    return NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.long
def test_the_cells_work_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DuckDB, tqdm and rich behave otherwise there. The answers are a fake's."""
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FAKES))
    executed(notebook, tmp_path, monkeypatch)
    assert picture(notebook).startswith(PNG)
    assert (tmp_path / "runs" / "notebook" / "statistics").is_dir()


@pytest.mark.timeout(1500)
@pytest.mark.engine
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    executed(notebook, tmp_path, monkeypatch)
    assert picture(notebook).startswith(PNG)
    assert (tmp_path / "runs" / "notebook" / "rows").is_dir()
    printed = [output for output in outputs(notebook) if output.get("name") == "stdout"]
    lines = "".join(output.text for output in printed).splitlines()
    margins = {line.split()[0]: float(line.split()[4]) for line in lines}
    # the gladder the vector makes it, the likelier Good is beside Bad
    assert margins["-1.5"] < margins["+0.0"] < margins["+1.5"]
