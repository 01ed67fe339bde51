"""Each notebook opens in Colab, and its first cell installs what the others need."""

import importlib.util
import re
import tomllib
from types import SimpleNamespace

import colab  # pyright: ignore[reportMissingImports]
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

NOTEBOOKS = sorted(colab.HERE.glob("*.ipynb"))
PROJECT = tomllib.loads((colab.HERE.parent / "pyproject.toml").read_text())["project"]
WITH_TORCH = re.compile(
    r"\bip\.(?:load|generate|scan|lens|align|hooked)\(|\btorch\b|internal_policy\.(?:lenses|models)"
)
"""What only works with the extra `models`."""


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def sources(path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def installs(path, monkeypatch, is_here: bool) -> list[tuple[str, str]]:
    """The magics that the first cell runs, as IPython would run them."""
    ran: list[tuple[str, str]] = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: ran.append((name, line)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if is_here else None)
    exec(TransformerManager().transform_cell(sources(path)[0]), {"get_ipython": lambda: shell})
    return ran


def test_the_first_cell_installs_the_package_with_its_extras_where_it_is_missing(path, monkeypatch):
    ((magic, line),) = installs(path, monkeypatch, is_here=False)
    command, quiet, named = line.split()
    wanted = Requirement(named.strip('"'))
    assert (magic, command, quiet, wanted.name) == ("pip", "install", "-q", PROJECT["name"])
    assert wanted.extras
    assert wanted.extras <= PROJECT["optional-dependencies"].keys()


def test_the_first_cell_does_nothing_where_the_package_is_installed(path, monkeypatch):
    assert installs(path, monkeypatch, is_here=True) == []


def test_a_notebook_that_needs_torch_installs_it(path):
    uses = any(WITH_TORCH.search(source) for source in sources(path))
    assert ("models" in colab.EXTRAS[path.stem].split(",")) == uses


def test_the_badge_and_the_first_cell_are_up_to_date(path):
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.writes(notebook)
    colab.prepare(notebook, path.stem)
    assert nbformat.writes(notebook) == before, "run python notebooks/colab.py"


def test_no_cell_names_a_path_outside_the_package(path):
    for source in sources(path):
        assert not re.findall(r"""["'](?:\.{1,2}/|/|~|[A-Z]:\\|(?:data|notebooks|app)/)""", source)


def test_modules_beside_a_notebook_come_with_the_wheel():
    wheel = tomllib.loads((colab.HERE.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    imported = {
        name for path in NOTEBOOKS for source in sources(path) for name in re.findall(r"^import (\w+)$", source, re.M)
    }
    beside = {path.stem for path in colab.HERE.glob("*.py")} & imported
    assert beside == {"experiments", "laptop", "outcomes"}
    for name in beside:
        assert wheel["force-include"][f"notebooks/{name}.py"] == f"internal_policy/notebooks/{name}.py"
