"""What `python -m build` makes: its size, its contents, and that it works on its own."""

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from importlib.metadata import Distribution
from pathlib import Path
from types import MappingProxyType

import pytest

import internal_policy as ip

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LIMIT = 20_000_000
"""Bytes of a wheel."""
WORKS = {
    "show demo-qwen3": "Target layer",
    "show smollm2-135m": "SmolLM2",
    "show experiments/bupo": "bupo",
    "report demo-qwen3 -o report.html": "",
    "ls": "demo-llama",
}
"""Command of an installed wheel -> what it prints."""


def shipped() -> dict[str, Path]:
    """The name in the wheel of each file that it should have, and the file."""
    places = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    found = {}
    for source, name in {"internal_policy": "internal_policy", **places}.items():
        for path in [ROOT / source, *(ROOT / source).rglob("*")]:
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT / source).as_posix()
                found[name if inside == "." else f"{name}/{inside}"] = path
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("data/models/demo-qwen3/model.safetensors", "data/models/demo-llama/tokenizer.json"),
        *("data/scans/demo-qwen3/scan.json", "data/scans/demo-llama/scan.json", "data/scans/smollm2-135m/scan.json"),
        *("data/experiments/bupo/metrics.parquet", "data/studies/smollm2/study.json", "data/problems/sums.jsonl"),
        *("data/recipes/qwen3-4b.yaml", "data/recipes/base.jinja"),
        *("app/main.py", "app/.streamlit/config.toml", "py.typed", "look/report.html"),
    ],
)
def test_the_wheel_will_have_what_commands_need(name):
    assert f"internal_policy/{name}" in shipped()


def test_the_contents_of_the_wheel_compress_to_less_than_its_limit():
    assert sum(len(zlib.compress(path.read_bytes(), 1)) for path in shipped().values()) < LIMIT


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source that `python -m build` makes: the wheel from the unpacked source."""
    pytest.importorskip("hatchling")
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A folder with the unpacked wheel, which is all that installing it without dependencies does."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.mark.slow
def test_the_wheel_is_smaller_than_20_megabytes(built):
    assert built[0].stat().st_size < LIMIT


@pytest.mark.slow
def test_both_files_are_named_after_the_version(built):
    assert [path.name for path in built] == [
        f"internal_policy-{ip.__version__}-py3-none-any.whl",
        f"internal_policy-{ip.__version__}.tar.gz",
    ]


@pytest.mark.slow
def test_the_wheel_has_exactly_the_package_the_dashboard_and_the_data(installed):
    files = {path.relative_to(installed).as_posix(): path for path in installed.rglob("*") if path.is_file()}
    inside = {name: path for name, path in files.items() if ".dist-info/" not in name}
    expected = shipped()
    assert {*inside} == {*expected}
    assert all(path.read_bytes() == expected[name].read_bytes() for name, path in inside.items())


@pytest.mark.slow
def test_the_wheel_has_both_licenses_and_the_command(installed):
    (about,) = installed.glob("*.dist-info")
    assert {path.name for path in about.rglob("LICENSE*")} == {"LICENSE", "LICENSE-APACHE-2.0"}
    found = Distribution.at(about)
    assert found.metadata["License-Expression"] == PYPROJECT["project"]["license"]
    assert [entry.value for entry in found.entry_points] == ["internal_policy.__main__:main"]


@pytest.mark.slow
def test_the_source_has_what_its_tests_need_and_nothing_that_was_made(built):
    with tarfile.open(built[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert names >= {"pyproject.toml", "constraints.txt", "tests/conftest.py", ".github/workflows/test.yml", "LICENSE"}
    made = (".venv/", ".git/", ".hypothesis/", ".pytest_cache/", ".ruff_cache/", ".import_linter_cache/", "dist/")
    assert not [name for name in names if name.startswith(made) or "__pycache__" in name]


def ran(
    words: str, installed: Path, folder: Path, more: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess:
    """What a command prints where only the unpacked wheel is on the path, away from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "INTERNAL_POLICY_CACHE": str(folder / "cache"), **more}
    command = [sys.executable, "-m", "internal_policy", *words.split()]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("words", WORKS)
def test_the_wheel_looks_at_what_it_brings(words, installed, tmp_path):
    done = ran(words, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert WORKS[words] in done.stdout


@pytest.mark.slow
def test_the_wheel_scans_its_own_model(installed, tmp_path):
    done = ran("scan --limit 1 --samples 1 --max-new-tokens 8 -o first", installed, tmp_path, {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first" / "scan.json").is_file()
