"""Execute the notebooks and keep their figures as images, which GitHub can show: `python notebooks/execute.py`."""

import base64
import os
from io import BytesIO
from pathlib import Path

import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from PIL import Image

from internal_policy.look import export

HERE = Path(__file__).parent
FIGURE = "application/json"
"""The output of plotly's renderer `json`: a figure that needs no browser."""


def execute(path: Path, folder: Path, seconds: int = 60) -> nbformat.NotebookNode:
    """Execute a notebook in a fresh kernel that starts in `folder`, with its figures as JSON."""
    quiet = {"PYTHONWARNINGS": "ignore:IProgress"}  # a warning about progress bars that contains a path of this machine
    env = {**os.environ, "PLOTLY_RENDERER": "json", "HF_HUB_OFFLINE": "1", **quiet}
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=seconds, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(folder), env=env)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def draw(notebook: nbformat.NotebookNode) -> None:
    """Replace each figure by an image that is small enough to commit."""
    for data in (output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output):
        if FIGURE in data:
            image = Image.open(BytesIO(export.image(go.Figure(data.pop(FIGURE)), "png"))).convert("RGB").reduce(2)
            image.save(small := BytesIO(), "png", optimize=True)
            data["image/png"] = base64.b64encode(small.getvalue()).decode()


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Drop the outputs in which nothing is left: progress that went away."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if "data" not in output or any(output.data.values())]


if __name__ == "__main__":
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = execute(path, HERE)
        draw(notebook)
        tidy(notebook)
        nbformat.write(notebook, path)
