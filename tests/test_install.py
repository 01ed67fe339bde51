"""Requirements of an installation, and what works without torch."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import internal_policy as ip
from internal_policy import errors
from internal_policy.jupyter import notebook

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
GROUPS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIREMENTS = {text: Requirement(text) for group in GROUPS for text in group if not text.startswith("internal-policy")}
TESTED = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
UNTESTED = {"vllm": "0.33"}
"""Packages that no machine of the tests can run, with the version that was read."""
UNBOUNDED = {"torch", "furo"}
"""Packages without an upper bound; pyproject.toml says why."""

LOOKING = {
    "ls": [],
    "rm": ["--unfinished"],
    "show": ["demo-qwen3"],
    "export": ["demo-qwen3", "--output", "table.csv"],
    "plot": ["demo-qwen3", "flow", "--output", "flow.html"],
    "report": ["demo-qwen3", "--output", "report.html"],
}
"""Commands that need no torch, with arguments."""
RUNNING = {**dict.fromkeys(("scan", "generate", "evaluate", "fit-lens", "families"), "models"), "train": "train"}
"""Commands that run a model, and the extra that each needs."""
TABLES = {
    "show": ["demo-qwen3"],
    "compare": ["demo-qwen3", "--against-readout", "norm"],
    "export": ["demo-qwen3", "--output", "rows.csv"],
}
"""Commands that need no extra, with arguments."""
DRAWING = {**{name: LOOKING[name] for name in ("plot", "report")}, "dashboard": []}
"""Commands that need the extra `app`, with arguments."""
WITHOUT = """
import contextlib, importlib.machinery, io, json, sys
find = importlib.machinery.PathFinder.find_spec
missing = {*json.loads(sys.argv[2])}
hidden = lambda name, *rest: None if name.partition(".")[0] in missing else find(name, *rest)
importlib.machinery.PathFinder.find_spec = hidden
from internal_policy.cli.main import main
done = {}
for command, arguments in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        done[command] = main([command, *arguments]), said.getvalue()
print(json.dumps(done))
"""
"""Runs the commands in its first argument where the packages in its second can't be imported.

It prints exit codes and stderr as JSON.
"""
MODELS = [*errors.MODELS, "tokenizers", "safetensors", "huggingface_hub", "trl", "peft"]
APP = ["plotly", "streamlit", "kaleido", "jinja2"]


def pythons(value) -> set[str]:
    """The Python versions in a piece of the workflow."""
    return set(re.findall(r"'(3\.\d+)'", repr(value)))


def names(requirements: list[str]) -> set[str]:
    """The packages in a list of requirements."""
    return {re.split(r"[\[<>=!]", requirement)[0] for requirement in requirements}


def test_ci_tests_every_python_that_the_project_supports():
    prefix = "Programming Language :: Python :: "
    supported = {name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(prefix)}
    jobs = WORKFLOW["jobs"]
    assert supported == {"3.11", "3.12", "3.13", "3.14"}
    assert pythons([jobs["test"], jobs["pythons"]["strategy"]]) == supported


def test_ci_trains_with_every_minor_version_of_trl_that_is_allowed():
    (trl,) = (name for name in PROJECT["optional-dependencies"]["train"] if name.startswith("trl"))
    allowed = SpecifierSet(trl.removeprefix("trl"))
    minors = {f"1.{minor}" for minor in range(99) if f"1.{minor}.0" in allowed}
    assert {*WORKFLOW["jobs"]["trl"]["strategy"]["matrix"]["trl"]} == minors


def test_the_base_installation_and_the_dashboard_do_not_bring_torch():
    needed = names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["app"])
    assert not needed & names(PROJECT["optional-dependencies"]["models"]) - {"jinja2"}


def test_every_direct_dependency_has_a_tested_version():
    assert {one.name for one in REQUIREMENTS.values()} - {*UNTESTED} <= {*TESTED}


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_a_requirement_allows_the_tested_version(text):
    needed = REQUIREMENTS[text]
    assert (TESTED | UNTESTED)[needed.name] in needed.specifier


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_a_requirement_allows_no_major_version_after_the_tested_one(text):
    needed = REQUIREMENTS[text]
    following = f"{Version((TESTED | UNTESTED)[needed.name]).major + 1}.0"
    assert (following in needed.specifier) == (needed.name in UNBOUNDED)


def test_packages_that_the_license_check_leaves_out_are_ones_that_we_install():
    left_out = PYPROJECT["tool"]["pip-licenses"]["ignore-packages"]
    assert {*left_out} - {"internal-policy"} <= {*TESTED}


def test_workflows_may_only_read_the_repository_unless_they_publish():
    needed = {"docs": [{"id-token": "write", "pages": "write"}], "release": [{"id-token": "write"}]}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}, path
        granted = [job["permissions"] for job in workflow["jobs"].values() if "permissions" in job]
        assert granted == needed.get(path.stem, []), path


@pytest.fixture(scope="module")
def without_models(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """The exit code and stderr of each command without torch and the other packages of `models`."""
    commands = {**LOOKING, **{name: [] for name in RUNNING}, "fit-lens": ["--output", "lens.safetensors"]}
    return ran(commands, MODELS, tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """The same without any extra, for the commands that need no model."""
    return ran(TABLES | DRAWING, [*MODELS, *APP], tmp_path_factory.mktemp("bare"))


def ran(commands: dict[str, list[str]], missing: list[str], folder: Path) -> dict[str, tuple[int, str]]:
    """The exit code and stderr of each command where some packages are missing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(commands), json.dumps(missing)],
        stdout=subprocess.PIPE, text=True, check=True, cwd=folder,
        env={**os.environ, "INTERNAL_POLICY_CACHE": str(folder / "cache")},
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", LOOKING)
def test_looking_at_a_scan_works_without_torch(without_models, command):
    code, said = without_models[command]
    assert code == 0, said


@pytest.mark.parametrize("command", TABLES)
def test_tables_are_printed_without_any_extra(bare, command):
    code, said = bare[command]
    assert code == 0, said


@pytest.mark.parametrize("command", DRAWING)
def test_drawing_without_plotly_names_the_extra_to_install(bare, command):
    package = "streamlit" if command == "dashboard" else "plotly"
    assert bare[command] == [
        2,
        f"error: This needs {package}, which isn't installed. Run: pip install 'internal-policy[app]'\n",
    ]


def test_a_notebook_shows_a_scan_and_a_run_without_plotly(monkeypatch):
    monkeypatch.setattr(notebook, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "internal_policy.look.sketch", None)  # importing it fails
    for opened in (ip.open_scan("demo-qwen3"), ip.open_run("experiments/bupo")):
        page = opened._repr_html_()
        assert "pip install &#x27;internal-policy[app]&#x27;" in page
        assert "<table" in page


@pytest.mark.parametrize("command", RUNNING)
def test_running_a_model_without_torch_names_the_extra_to_install(without_models, command):
    install = f"pip install 'internal-policy[{RUNNING[command]}]'"
    assert without_models[command] == [2, f"error: This needs torch, which isn't installed. Run: {install}\n"]


@pytest.mark.parametrize("package", errors.MODELS)
def test_an_error_names_any_missing_package(package, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(errors.InputError, match=f"^This needs {package}, "):
        errors.require("models", *errors.MODELS)


def test_an_error_under_uvx_names_the_command_with_the_extra(monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "prefix", "/home/me/.cache/uv/archive-v0/3b0gSmHBb8Oja_eC")
    with pytest.raises(errors.InputError, match=r"Run: uvx --from 'internal-policy\[models\]' internal-policy \.\.\.$"):
        errors.require("models", "torch")


def test_the_models_extra_installs_the_packages_that_are_checked():
    installed = {name.replace("-", "_") for name in names(PROJECT["optional-dependencies"]["models"])}
    assert installed - {"jinja2"} == {*errors.MODELS}
