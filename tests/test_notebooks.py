"""Notebooks run from top to bottom in a kernel of their own, and print what is stored in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST_BYTES = 400_000


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    """The stdout of a cell."""
    return "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")


def pictures(cell: Any) -> list[str]:
    """Kinds of the results that a cell shows: a picture, or a page's words with a picture in them."""
    shown = [set(out.data) for out in cell.outputs if out.output_type == "execute_result"]
    return ["html" if "text/html" in kinds else "picture" for kinds in shown if kinds - {"text/plain"}]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_stored_in_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("timm")
    assert path.stat().st_size < LARGEST_BYTES
    stored, notebook = nbformat.read(path, 4), nbformat.read(path, 4)
    nbformat.validate(stored)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for before, after in zip(code_cells(stored), code_cells(notebook), strict=True):
        assert printed(after) == printed(before), f"{after.source}\nstore again: jupyter execute --inplace {path}"
        assert pictures(after) == pictures(before), after.source


def test_there_is_a_quick_start() -> None:
    assert ROOT / "notebooks" / "quickstart.ipynb" in NOTEBOOKS
