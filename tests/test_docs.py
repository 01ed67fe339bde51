"""The documentation runs, and names what there is."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from internal_policy.__main__ import main
from internal_policy.cli.options import COMMANDS

ROOT = Path(__file__).parent.parent
POSITIONAL = {
    ("show", "scan"): "SCAN",
    ("export", "scan"): "SCAN",
    ("plot", "scan"): "SCAN",
    ("plot", "figure"): "{flow,change,",
    ("report", "scans"): "SCAN",
}
"""Options that have no name on the command line -> how the help shows them."""
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_of_the_readme_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path))
    assert main(["scan", "--limit", "2", "--max-new-tokens", "8"]) == 0
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    printed = capsys.readouterr().out
    assert "resid_post" in printed
    assert len(names["cells"]) == len(names["tokens"]["response_ids"][0]) * 9
    assert "5.attn_out torch.Size([1, " in printed


def test_the_readme_names_every_command():
    assert set(re.findall(r"`internal-policy ([a-z-]+)", README)) == set(COMMANDS)


def test_the_readme_names_every_folder_of_the_package():
    folders = {path.parent.name for path in (ROOT / "internal_policy").glob("*/__init__.py")}
    assert {name for name in folders if f"      {name}/ " not in README} == set()


def test_ci_runs_the_test_command_of_the_readme():
    assert blocks("bash")[1].strip() in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained_in_the_help(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(COMMANDS[name]):
        assert POSITIONAL.get((name, field.name), f"--{field.name.replace('_', '-')}") in text
