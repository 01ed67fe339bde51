"""The command line: arguments in, an exit code out."""

import io
import os
import shlex
import sys
from collections.abc import Sequence

import tyro

from internal_policy.cli.console import Terminal
from internal_policy.cli.options import COMMANDS, Train
from internal_policy.errors import InputError

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show Δ gets its number
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=arguments,
        prog="internal-policy",
        description="See what every layer, attention block and FFN of a language model would say next, "
        "and how sure it is.",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    resume = ["--resume"] if isinstance(command, Train) and "--resume" not in arguments else []
    again = shlex.join(["internal-policy", *arguments, *resume])
    say = Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        from internal_policy.cli import commands

        wrong = commands.RUN[type(command)](command)
    except InputError as error:
        say.print(f"error: {error}")
        return WRONG_USAGE
    except KeyboardInterrupt:
        say.print(f"Interrupted; what is whole is kept. Continue with: {again}")
        return INTERRUPTED
    except BrokenPipeError:  # who reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        say.print("error: one rollout at a time is too much for the memory; try --dtype bfloat16, or a shorter text.")
        return FAILED
    except OSError as error:  # a full disk, a folder that may not be written
        say.print(f"error: {error}; what is whole is kept. When that is mended, continue with: {again}")
        return FAILED
    return FAILED if wrong else DONE


if __name__ == "__main__":
    sys.exit(main())
