"""The command line: arguments in, an exit code out."""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import internal_policy
from internal_policy.cli import families, parsing, train, usage
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.common import ModelOptions
from internal_policy.cli.console import Terminal, out
from internal_policy.errors import MODELS, InputError, require

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
HELP = {"-h", "--help"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show Δ gets its number
    say = Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False)
    again = shlex.join(["internal-policy", *_continuing(arguments)])
    try:
        wrong = _run(arguments)
    except InputError as error:
        say.print(f"error: {error}")
        return WRONG_USAGE
    except KeyboardInterrupt:
        say.print(f"Interrupted. Finished work is kept. Continue with: {again}")
        return INTERRUPTED
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        say.print("error: a single rollout is too large for the memory. Try --dtype bfloat16, or a shorter text.")
        return FAILED
    except OSError as error:  # a full disk, a folder that may not be written
        say.print(f"error: {error}. Finished work is kept. Once this is fixed, continue with: {again}")
        return FAILED
    return FAILED if wrong else DONE


def _run(words: Sequence[str]) -> bool | None:
    """Do what the words ask: print the version or help, or run a command; True if something is wrong."""
    if not words or words[0] in HELP:
        usage.print_commands({name: (row.group, usage.page(row.options).summary) for name, row in COMMANDS.items()})
    elif words[0] == "--version":
        out.print(f"internal-policy {internal_policy.__version__}")
    elif words[0].startswith("--tyro-"):  # tyro writes completions for shells
        parsing.complete(COMMANDS, words)
    elif words[0] not in COMMANDS:
        raise parsing.unknown_command(words[0], COMMANDS)
    elif HELP & {*words}:
        usage.print_page(words[0], usage.page(COMMANDS[words[0]].options))
    else:
        options = parsing.parse(COMMANDS, words)
        _check_installed(options)
        return COMMANDS[words[0]].run(options)
    return None


def _continuing(words: Sequence[str]) -> list[str]:
    """The command that continues an interrupted one."""
    if words[:1] != ["train"]:
        return [*words]
    return [*(word for word in words if word not in ("--force", "--resume")), "--resume"]


def _check_installed(options: Any) -> None:
    """Raise InputError if a command that runs a model lacks a package, before it begins."""
    if isinstance(options, train.Train):
        require("train", *MODELS, "trl", "yaml")
    elif isinstance(options, ModelOptions | families.Families):
        require("models", *MODELS)
