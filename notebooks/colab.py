"""Give each notebook a badge that opens it in Colab, and a first cell that installs: `python notebooks/colab.py`."""

from pathlib import Path

import nbformat

HERE = Path(__file__).parent
REPOSITORY = "internal-policy/internal-policy"
"""Owner and name on GitHub, where Colab takes the notebooks from."""
EXTRAS = {
    "01_quickstart": "app,models",
    "02_entropy_of_a_model": "app",
    "03_read_and_sample_internal_policies": "app,models",
    "04_compare_models": "app",
    "05_bupo_on_a_laptop": "app",
    "06_lenses": "app,models",
    "07_smollm2": "app",
}
"""Notebook -> what it needs beside the package. Only those that load a model need torch."""
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def badge(name: str) -> str:
    """The line that opens a notebook in Colab, in Markdown."""
    page = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab]({BADGE})]({page})"


def setup(name: str) -> str:
    """The first code cell: it installs the package where it is missing, as in Colab, and elsewhere does nothing."""
    return f"""from importlib.util import find_spec

if find_spec("internal_policy") is None:  # as in Colab
    %pip install -q "internal-policy[{EXTRAS[name]}]"
"""


def prepare(notebook: nbformat.NotebookNode, name: str) -> None:
    """Put the badge below the title and the installation first, unless they are there; other outputs are kept."""
    title, *rest = notebook.cells[0].source.split("\n")
    text = "\n".join(line for line in rest if BADGE not in line).strip()
    notebook.cells[0].source = f"{title}\n\n{badge(name)}\n\n{text}"
    first = notebook.cells[1]
    if "%pip" not in first.get("source", ""):
        first = nbformat.v4.new_code_cell(id="setup", execution_count=1)
        notebook.cells.insert(1, first)
    first.source = setup(name).strip()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        prepare(notebook, path.stem)
        nbformat.write(notebook, path)
