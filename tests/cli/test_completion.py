"""Completion in bash, zsh and fish."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.main import main

BASH = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=$((${#COMP_LINE}))
_tyro_internal_policy internal-policy "${COMP_WORDS[COMP_CWORD]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
zmodload zsh/zpty; zpty shell zsh -f -i
zpty -w shell "PS1=; fpath=($1 \\$fpath); autoload -Uz compinit; compinit -u -D; unsetopt beep; print rea''dy"
zpty -r shell out '*ready*'
zpty -w -n shell "internal-policy sc"$'\\t'; zpty -r shell out '*internal-policy scan*' && print found
zpty -d shell
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    """A folder with the script for each shell, under the name that zsh looks for."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).mkdir()
        assert main(["--tyro-write-completion", shell, str(folder / shell / "_internal-policy")]) == 0
    return folder


def in_bash(scripts: Path, *words: str) -> list[str]:
    command = ["bash", "--norc", "-c", BASH, "bash", str(scripts / "bash" / "_internal-policy"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def in_fish(scripts: Path, line: str) -> list[str]:
    code = f"source {scripts / 'fish' / '_internal-policy'}; complete -C '{line}'"
    return subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["sc"], {"scan"}),
        (["scan", "--mod"], {"--model"}),
        (["scan", "--readout", ""], {"raw", "norm", "both"}),
        (["plot", "demo-qwen3", "--sty"], {"--style"}),
    ],
)
def test_bash_completes_commands_options_and_values(scripts, words, completed):
    assert {*in_bash(scripts, "internal-policy", *words)} == completed


def test_each_option_of_a_command_is_offered_by_itself(scripts):
    offered = in_bash(scripts, "internal-policy", "scan", "--")
    assert {"--model", "--rollouts", "--text"} <= {*offered}
    assert [one for one in offered if not one.startswith("--") or " " in one] == []


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes_with_our_help(scripts):
    assert in_fish(scripts, "internal-policy scan --readout ") == ["both\tboth", "norm\tnorm", "raw\traw"]
    assert in_fish(scripts, "internal-policy sc") == [
        "scan\tMeasure the policy of every layer at every response token."
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_completes_a_command(scripts):
    done = subprocess.run(
        ["zsh", "-f", "-c", ZSH, "zsh", str(scripts / "zsh")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("found\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_script_lists_every_command_with_its_help_on_one_line(scripts, shell):
    start = "COMPLETION_SPEC = "
    lines = (scripts / shell / "_internal-policy").read_text().splitlines()
    (listed,) = (ast.literal_eval(line.removeprefix(start)) for line in lines if line.startswith(start))
    assert {*listed["subcommands"]} == {*COMMANDS}
    helps = [option["description"] for one in listed["subcommands"].values() for option in one["options"]]
    assert not [text for text in helps if "\n" in text or "%%" in text]


@pytest.mark.parametrize("words", [["bash"], ["tcsh", "file"], []])
def test_another_shell_or_a_missing_file_is_refused(words, capsys):
    assert main(["--tyro-write-completion", *words]) == 2
    assert capsys.readouterr().err == "error: --tyro-write-completion needs bash, zsh or fish and a file.\n"
