"""The notebooks run, and are committed with their outputs."""

import ast
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 60
"""Longest time for a cell."""


def outputs(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return cell.get("outputs", [])


def count(notebook: nbformat.NotebookNode, kind: str) -> list[int]:
    """The number of outputs of one kind in each cell."""
    return [sum(kind in output.get("data", {}) for output in outputs(cell)) for cell in notebook.cells]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def committed(path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_there_are_seven_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.slow
def test_a_notebook_runs_from_any_folder_and_its_figures_are_committed_as_images(
    path, committed, tmp_path, monkeypatch
):
    for name in ("INTERNAL_POLICY_CACHE", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = runpy.run_path(str(FOLDER / "execute.py"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # waiting threads are slow on a busy machine
    fresh = run["execute"](path, tmp_path, SECONDS)  # raises if a cell raises or takes too long
    assert count(fresh, run["FIGURE"]) == count(committed, "image/png")


def test_a_committed_notebook_was_run_from_top_to_bottom(committed):
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_a_committed_notebook_shows_no_errors_and_no_warnings(committed):
    for cell in committed.cells:
        assert not [out for out in outputs(cell) if out.output_type == "error" or out.get("name") == "stderr"]


def test_a_notebook_has_no_logic_of_its_own(committed):
    for cell in committed.cells:
        if cell.cell_type == "code":
            defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
            assert not [
                node
                for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source)))
                if isinstance(node, defined)
            ]


def test_no_notebook_names_a_folder_of_this_machine(committed):
    for cell in committed.cells:
        for output in outputs(cell):
            output.get("data", {}).pop("image/png", None)  # its letters mean nothing
    assert not re.findall(r"/(?:work|root|home|Users|tmp|usr|opt|var)/|[A-Z]:\\\\", json.dumps(committed))


def test_a_notebook_is_small(path):
    assert path.stat().st_size < 1_500_000
