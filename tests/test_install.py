"""What an installation has, and what works with less of it."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())


def pythons(value) -> set[str]:
    """The versions of Python that a piece of the workflow names."""
    return set(re.findall(r"'(3\.\d+)'", repr(value)))


def names(requirements: list[str]) -> set[str]:
    """The packages of a list of requirements."""
    return {re.split(r"[\[<>=!]", requirement)[0] for requirement in requirements}


def test_ci_tests_every_python_that_the_project_supports():
    prefix = "Programming Language :: Python :: "
    supported = {name.removeprefix(prefix) for name in PROJECT["classifiers"] if name.startswith(prefix)}
    jobs = WORKFLOW["jobs"]
    assert supported == {"3.11", "3.12", "3.13", "3.14"}
    assert pythons([jobs["test"], jobs["pythons"]["strategy"]]) == supported


def test_the_base_installation_and_the_dashboard_do_not_bring_torch():
    needed = names(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["app"])
    assert not needed & names(PROJECT["optional-dependencies"]["models"]) - {"jinja2"}


def test_every_direct_dependency_has_a_tested_version():
    tested = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    assert set().union(*map(names, groups)) - {"internal-policy"} <= tested
