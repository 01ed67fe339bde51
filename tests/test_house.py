"""Rules of the code: imports, sizes and first sentences of files."""

import ast
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "internal_policy"
FORBIDDEN = [
    ("measure.metrics", "internal_policy.models.hooks"),
    ("scans.store", "internal_policy.train.bupo"),
    ("look.view", "internal_policy.scans.scan"),
    ("models.hooks", "internal_policy.files"),
    ("train.bupo", "internal_policy.scans.scan"),
    ("train.callbacks", "nnsight"),
]
"""Imports against the order of the folders, or that reach torch or what else a file must not know."""


def loaded(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def linted(package: Path) -> subprocess.CompletedProcess:
    """The output of import-linter on a copy of the package with its contracts."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], capture_output=True, text=True, cwd=package.parent
    )


def test_folders_import_only_from_those_below():
    done = linted(PACKAGE)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> str:
    """The output of import-linter on a copy of the package with all `FORBIDDEN` imports."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / "internal_policy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for importer, imported in FORBIDDEN:
        with (folder / "internal_policy" / f"{importer.replace('.', '/')}.py").open("a") as file:
            file.write(f"\nimport {imported}\n")
    done = linted(folder / "internal_policy")
    assert done.returncode == 1
    return done.stdout


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN)
def test_a_forbidden_import_is_found(complaints, importer, imported):
    assert f"internal_policy.{importer} -> {imported} (l." in complaints


def test_files_that_import_each_other_are_found(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "internal_policy", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "internal_policy" / "look" / "runs.py").open("a") as file:
        file.write("\nimport internal_policy.look.run\n")
    assert "No cycles are allowed in internal_policy.look." in linted(tmp_path / "internal_policy").stdout


@pytest.mark.parametrize("module", ["scans.store", "look.catalogue", "look.report", "look.runs", "cli.plot"])
def test_looking_at_a_scan_never_reaches_torch(module):
    assert not loaded(f"import internal_policy.{module}") & {"torch", "transformers"}


def test_peft_is_imported_only_for_adapters():
    assert "peft" not in loaded(
        "import internal_policy.tasks.rollouts, internal_policy.scans.scan, internal_policy.models.policy"
    )


def test_importing_the_package_imports_nothing_heavy():
    assert not loaded("import internal_policy") & {"torch", "transformers", "pandas", "transformer_lens", "nnsight"}


MODELS = {"torch", "transformers"}
TABLES = {"numpy", "pandas", "pyarrow"}
UNUSED = {
    "--help": MODELS | TABLES | {"plotly", "asyncio"},
    "scan --help": MODELS | TABLES | {"plotly", "asyncio"},
    "ls": MODELS | {"plotly", "scipy"},
    "show demo-qwen3": MODELS | {"plotly", "scipy"},
    "show {data}/experiments/bupo": MODELS | {"plotly", "scipy"},
    "plot demo-qwen3 flow -o {folder}/flow.html": MODELS | {"kaleido", "scipy"},
}
"""Command -> modules that would slow its start, and that it doesn't use."""


@pytest.mark.parametrize("command", UNUSED)
def test_a_command_imports_nothing_that_it_does_not_use(command, tmp_path):
    words = command.format(data=ROOT / "data", folder=tmp_path).split()
    assert not loaded(f"from internal_policy.__main__ import main; main({words})") & UNUSED[command]


def test_only_four_files_load_a_model_its_tokenizer_or_its_settings_by_name():
    users = {path.stem for path in PACKAGE.rglob("*.py") if ".from_pretrained(" in path.read_text()}
    assert users == {"generation", "loading", "tokenizers", "trial"}


def test_every_file_opens_with_one_sentence():
    for path in PACKAGE.rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[:1]
        assert first, path
        assert first[0].endswith((".", "?")), path


def test_rooms_md_lists_every_file():
    page = runpy.run_path(str(ROOT / "docs" / "rooms.py"))["page"]()
    assert (ROOT / "docs" / "rooms.md").read_text() == page, "run python docs/rooms.py"


def test_files_and_functions_stay_small():
    paths = list(PACKAGE.rglob("*.py"))
    assert {path.name: n for path in paths if (n := len(path.read_text().splitlines())) > 350} == {}
    functions = (
        (node, path)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert {
        f"{path.name}: {node.name}" for node, path in functions if (node.end_lineno or 0) - node.lineno >= 60
    } == set()


def test_the_top_of_the_package_has_at_most_eight_files():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_slow_tests_are_listed_by_names_that_exist():
    here = Path(__file__).parent
    lines = (here / "slow.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(set(lines))
    for line in lines:
        path, _, name = line.partition("::")
        assert f"def {name.partition('[')[0]}(" in (here.parent / path).read_text(encoding="utf-8"), line
