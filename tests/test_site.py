"""The documentation's site: every page is listed, has a Markdown twin, and holds what is generated from the code."""

import re
import shutil
from pathlib import Path

import docstrings
import generated
import pytest
import twins
import yaml

import internal_policy as ip
from internal_policy.cli.commands import reference
from internal_policy.models.rows import FAMILIES
from internal_policy.models.rows.refused import REFUSED

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_the_table_of_contents_holds_every_page():
    by_hand = {path.stem for path in DOCS.glob("*.md")} - {"rooms"}
    assert sorted(twins.pages(DOCS)) == sorted(
        by_hand | {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The sources of the site, with what is generated."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("_*", "notebooks"))
    shutil.copy(ROOT / "CHANGELOG.md", folder.parent)
    generated.write(folder)
    return folder


def test_llms_txt_has_a_line_for_every_page(site):
    text = twins.llms(twins.twin(site, "index"))
    assert re.findall(r"^- \[.+\]\((.+)\.html\.md\): .{20,}\.$", text, re.MULTILINE) == twins.pages(site)[1:]


def test_a_twin_links_to_twins_and_holds_what_its_page_includes(site):
    assert "](columns.html.md)" in twins.twin(site, "index")
    assert "| `__main__.py` | " in twins.twin(site, "architecture")


def test_a_link_to_a_notebook_leads_to_its_page(site):
    assert "](notebooks/05_bupo_on_a_laptop.html.md)" in twins.twin(site, "laptop")


def test_a_page_of_docstrings_has_them_in_its_twin(site):
    objects = {
        "internal_policy.load": "### load\n",
        "internal_policy.load.name": "#### name\n",
        "load": "### elsewhere\n",
    }
    text = twins.twin(site, "api", objects)
    assert "\n\n### load\n\n#### name\n" in text
    assert "### elsewhere" not in text


def test_the_page_of_models_has_every_family(site):
    text = twins.twin(site, "models")
    assert {name for name, row in FAMILIES.items() if f"| `{row.model_type or name}` |" not in text} == set()


def test_the_page_of_models_shows_what_families_share_and_what_cannot_be_read(site):
    text = twins.twin(site, "models")
    assert "| `arcee` | `llama` | 7 | before |" in text
    assert all(f"| `{kind}` | {reason} |" in text for kind, reason in REFUSED.items())
    assert ":::" not in text


def test_the_page_of_commands_has_every_option(site):
    sections = {part.split("\n")[0]: part for part in twins.twin(site, "commands").split("\n## internal-policy ")}
    for name, page in reference().items():
        for option in (option for options in page.groups.values() for option in options):
            assert f"`{option.typed}`\n: " in sections[name]


def test_the_page_of_the_api_has_every_public_name():
    shown = re.findall(
        r"^\.\. auto\w+:: internal_policy\.(?:models\.hooks\.)?(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE
    )
    assert {*shown} == {*ip.__all__} - {"__version__"}


def test_docstrings_are_read_as_markdown():
    lines = ["Load `name`.", "", '    ip.load("a")', "", "`dtype` is what"]
    assert docstrings.restructured(lines) == [
        "Load ``name``.", "", ".. code-block:: python", "", '    ip.load("a")', "", "``dtype`` is what",
    ]  # fmt: skip


def test_ci_builds_the_site_with_warnings_as_errors():
    assert (
        ".venv/bin/sphinx-build -W --keep-going -q -b html docs docs/_build/html" in (ROOT / ".ci" / "run").read_text()
    )


def test_the_workflow_publishes_pages_that_were_built_without_a_warning():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert "python -m sphinx -W --keep-going -b html docs docs/_build/html" in commands
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write", "pages": "write"}


def test_the_figures_of_alignments_lie_where_the_page_looks_for_them(site):
    pictures = re.findall(r"!\[.*\]\((\S+\.svg)\)", twins.resolved(site / "align.md"))
    assert len(pictures) == 2
    assert all((site / name).read_text().startswith('<svg xmlns="http://www.w3.org/2000/svg"') for name in pictures)
