"""The command line: arguments in, an exit code out."""

import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

import internal_policy
from internal_policy.cli import (
    dashboard,
    evaluate,
    export,
    families,
    fit_lens,
    generate,
    lens,
    ls,
    plot,
    report,
    scan,
    show,
    train,
)
from internal_policy.cli.common import ModelOptions
from internal_policy.cli.console import Terminal, out
from internal_policy.errors import MODELS, InputError, require

COMMANDS: dict[str, tuple[type, Callable[[Any], bool | None]]] = {
    "lens": (lens.Lens, lens.run),
    "scan": (scan.Scan, scan.run),
    "generate": (generate.Generate, generate.run),
    "evaluate": (evaluate.Evaluate, evaluate.run),
    "fit-lens": (fit_lens.FitLens, fit_lens.run),
    "train": (train.Train, train.run),
    "ls": (ls.Ls, ls.run),
    "show": (show.Show, show.run),
    "export": (export.Export, export.run),
    "plot": (plot.Plot, plot.run),
    "report": (report.Report, report.run),
    "dashboard": (dashboard.Dashboard, dashboard.run),
    "families": (families.Families, families.run),
}
"""Each command's options, and what runs it: True if it did its work and something is wrong."""
DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show Δ gets its number
    if arguments == ["--version"]:
        out.print(f"internal-policy {internal_policy.__version__}")
        return DONE
    options = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in COMMANDS.items()},
        args=arguments,
        prog="internal-policy",
        description="See what every layer, attention block and FFN of a language model would say next, "
        "and how sure it is. --version prints the version.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    resume = ["--resume"] if isinstance(options, train.Train) and "--resume" not in arguments else []
    again = shlex.join(["internal-policy", *arguments, *resume])
    say = Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        _check_installed(options)
        wrong = dict(COMMANDS.values())[type(options)](options)
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


def _check_installed(options: Any) -> None:
    """Raise InputError if a command that runs a model lacks a package, before it begins."""
    if isinstance(options, train.Train):
        require("train", *MODELS, "trl", "yaml")
    elif isinstance(options, ModelOptions | families.Families):
        require("models", *MODELS)
