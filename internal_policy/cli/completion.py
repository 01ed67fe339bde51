"""The script with which a shell completes commands, options and their values."""

import ast
import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from internal_policy import files
from internal_policy.cli import usage
from internal_policy.cli.commands import Command
from internal_policy.errors import InputError

SHELLS = ("bash", "zsh", "fish")
PRINT, WRITE = "--tyro-print-completion", "--tyro-write-completion"
_START = "COMPLETION_SPEC = "
"""How the line begins in which tyro's script lists commands and options."""


def complete(commands: Mapping[str, Command], words: Sequence[str], parse: Callable[[list[str]], Any]) -> None:
    """Print a script, or write it to a file: `--tyro-print-completion SHELL`, `--tyro-write-completion SHELL FILE`.

    `parse` passes words to tyro, which prints the script. Raises InputError for another shell, or without a file.
    """
    if len(words) < (2 if words[0] == PRINT else 3) or words[1] not in SHELLS:
        raise InputError(f"{words[0]} needs bash, zsh or fish{' and a file' if words[0] == WRITE else ''}.")
    with contextlib.redirect_stdout(io.StringIO()) as written, contextlib.suppress(SystemExit):
        parse([PRINT, words[1]])
    text = described(written.getvalue(), commands, quoted=words[1] == "fish")
    if words[0] == PRINT:
        print(text, end="")
    else:
        files.write_text(Path(words[2]).expanduser(), text)


def described(script: str, commands: Mapping[str, Command], quoted: bool) -> str:
    """A script of tyro's with our help on one line each, because a shell takes each line for something to insert.

    In fish the list of commands is `quoted`: it is within double quotes.
    """
    (line,) = (line for line in script.splitlines() if line.startswith(_START))
    plain = line.removeprefix(_START)
    listed = ast.literal_eval(re.sub(r'\\(["\\$])', r"\1", plain) if quoted else plain)
    for name, command in commands.items():
        found = listed["subcommands"][name]
        found["description"] = usage.summary(command.options)
        groups = usage.page(command.options).groups.values()
        helps = {flag: option.help for options in groups for option in options for flag in option.flags}
        for option in found["options"]:
            text = next((helps[flag] for flag in option["flags"] if flag in helps), option["description"])
            option["description"] = " ".join(text.split())
            if "choices" in option:
                option["choices"] = [choice for choice in option["choices"] if choice != "None"]
    found = re.sub(r'(["\\$])', r"\\\1", repr(listed)) if quoted else repr(listed)
    return script.replace(line, _START + found)
