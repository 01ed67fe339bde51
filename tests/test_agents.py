"""AGENTS.md and llms.txt: their commands run, and their links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
from test_docs import commands

from internal_policy.__main__ import main

ROOT = Path(__file__).parent.parent
AGENTS = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
LLMS = (ROOT / "llms.txt").read_text(encoding="utf-8")
LINE = re.compile(r"- \[[^\]]+\]\(([^)\s]+)\): \S.*\.")
"""A link of llms.txt."""
QUICK = ("ls", "show", "compare", "export", "verify")
"""Commands that read what comes with the package, which is fast."""


def run(command: str, capsys) -> dict | list:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert main(shlex.split(command)[1:]) == 0, command
    return json.loads(capsys.readouterr().out)


def test_the_commands_for_agents_all_print_json():
    assert [line for line in commands(AGENTS) if not line.endswith(" --json")] == []
    assert len(commands(AGENTS)) > 10


def test_the_commands_for_agents_that_only_read_run(here, capsys):
    for command in commands(AGENTS):
        if command.split()[1] in QUICK and "my-run" not in command:
            assert "error" not in run(command, capsys)


@pytest.mark.slow
def test_every_command_for_agents_runs_in_order(here, capsys):
    for command in commands(AGENTS):
        assert "error" not in run(command, capsys)


def test_llms_txt_has_a_title_a_summary_and_lists_of_links():
    title, blank, summary, *rest = LLMS.splitlines()
    assert title.startswith("# ")
    assert blank == ""
    assert summary.startswith("> ")
    assert [line for line in rest if line.startswith("- ") and not LINE.fullmatch(line)] == []
    assert [line for line in rest if line.startswith("## ")][-1] == "## Optional"


@pytest.mark.parametrize("link", LINE.findall(LLMS))
def test_a_link_of_llms_txt_leads_to_a_file(link):
    assert (ROOT / link).is_file()


def test_the_configurations_of_clients_are_json():
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(encoding="utf-8"), re.DOTALL)
    servers = [next(iter(json.loads(block).values()))["internal-policy"] for block in blocks]
    assert [(one["command"], one["args"][0]) for one in servers] == [("internal-policy", "mcp")] * 2
