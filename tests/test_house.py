"""What must never be: which room may import which."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "internal_policy"


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("internal_policy"):
            inside = node.module.removeprefix("internal_policy").removeprefix(".")
            if (PACKAGE / inside.replace(".", "/")).is_dir():
                found |= {f"{inside}.{alias.name}".removeprefix(".") for alias in node.names}
            else:
                found |= {inside}
    return found


def rooms() -> dict[str, Path]:
    """Every room by the name that CONTRIBUTING has for it, such as hooks or readers.nnsight."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def loaded(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_rooms_import_from_the_floors_below_alone():
    lines = re.findall(r"^    floor (\d+) +(.*)$", (PACKAGE.parent / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    floor = {room: int(number) for number, names in lines for room in names.split()}
    assert set(floor) == set(rooms())
    upwards = {
        (room, other) for room, path in rooms().items() for other in imports(path) if floor[other] >= floor[room]
    }
    assert not upwards


@pytest.mark.parametrize("room", ["families", "hooks", "policy", "metrics"])
def test_reading_knows_nothing_of_problems_rollouts_or_files(room):
    assert not imports(PACKAGE / f"{room}.py") & {"tasks", "rollouts", "cache"}


def test_scanning_and_training_know_nothing_of_each_other():
    assert "bupo" not in imports(PACKAGE / "scan.py")
    assert "scan" not in imports(PACKAGE / "bupo.py")


def test_the_trainer_never_reaches_other_readers():
    assert not loaded("import internal_policy.train.bupo, internal_policy.train.callbacks") & {
        "transformer_lens",
        "nnsight",
    }


@pytest.mark.parametrize(
    "room", ["cache", "analysis", "tokens", "figures", "report", "drawing", "runs", "experiments", "outcomes"]
)
def test_looking_at_a_scan_never_reaches_torch(room):
    assert not loaded(f"import internal_policy.{room}") & {"torch", "transformers"}


def test_importing_the_package_imports_nothing_heavy():
    assert not loaded("import internal_policy") & {"torch", "transformers", "pandas", "transformer_lens", "nnsight"}


def test_help_is_printed_without_torch():
    code = "import internal_policy.__main__ as m\ntry: m.main(['scan', '--help'])\nexcept SystemExit: pass"
    assert not loaded(f"exec({code!r})") & {"torch", "transformers", "pandas"}


def test_only_loading_loads_a_model_by_name():
    users = {path.stem for path in PACKAGE.rglob("*.py") if ".from_pretrained(" in path.read_text()}
    assert users == {"loading"}


def test_every_file_opens_with_one_sentence():
    for path in PACKAGE.rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[:1]
        assert first, path
        assert first[0].endswith((".", "?")), path
