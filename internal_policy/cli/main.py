"""The command line: arguments in, an exit code out."""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import internal_policy
from internal_policy.cli import families, launched, parsing, train, usage
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.common import ModelOptions
from internal_policy.cli.console import Terminal, out
from internal_policy.errors import MODELS, InputError, require

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
HELP = {"-h", "--help"}
CONTINUED = ("scan", "ablate", "align", "generate", "evaluate", "fit-lens", "train")
"""Commands that continue where they were interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Return 0 if it is done, 1 if it failed, 2 for wrong usage, 130 if it was interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show Δ gets its number
    say = Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False)
    again = _again(arguments)
    try:
        wrong = _run(arguments)
    except InputError as error:
        launched.report(f"error: {error}", say)
        return WRONG_USAGE
    except KeyboardInterrupt:
        launched.report(f"Interrupted.{again and f' Finished work is kept. {again}'}", say)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        launched.report("error: a single rollout doesn't fit in memory. Try --dtype bfloat16 or a shorter text.", say)
        return FAILED
    except OSError as error:  # a full disk, a folder that may not be written
        launched.report(f"error: {error}.{again and f' Finished work is kept. Fix this first. {again}'}", say)
        return FAILED
    return FAILED if wrong else DONE


def _run(words: Sequence[str]) -> bool | None:
    """Print the version or help, or run a command. True if the command found something wrong."""
    if not words or words[0] in HELP:
        usage.print_commands({name: (row.group, usage.summary(row.options)) for name, row in COMMANDS.items()})
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


def _again(words: Sequence[str]) -> str:
    """How to continue an interrupted command, in a sentence; empty if there is nothing to continue."""
    if not words or words[0] not in CONTINUED:
        return ""
    if launched.is_shared():
        return f"Continue with the same launch command{' and --resume' if words[0] == 'train' else ''}."
    if words[0] == "train":
        words = [*(word for word in words if word not in ("--force", "--resume")), "--resume"]
    return f"Continue with: {shlex.join(['internal-policy', *words])}"


def _check_installed(options: Any) -> None:
    """Raise InputError if a package is missing that the command needs to run a model."""
    if isinstance(options, train.Train):
        require("train", *MODELS, "trl", "yaml")
    elif isinstance(options, ModelOptions | families.Families):
        require("models", *MODELS)
