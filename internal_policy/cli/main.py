"""The command line: arguments in, an exit code out."""

import errno
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import internal_policy
from internal_policy import files
from internal_policy.cli import completion, families, launched, parsing, train, usage
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.common import ModelOptions
from internal_policy.cli.console import Terminal, document, out
from internal_policy.errors import MODELS, InputError, is_out_of_memory, require
from internal_policy.secrecy import printable

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
HELP = {"-h", "--help"}
CONTINUED = ("scan", "ablate", "align", "generate", "evaluate", "fit-lens", "train")
"""Commands that continue where they were interrupted."""
PRIVATE = {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment variables, unless they are set: libraries don't report their use, nor do processes that we start."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Return 0 if it is done, 1 if it failed, 2 for wrong usage, 130 if it was interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.update({name: value for name, value in PRIVATE.items() if name not in os.environ})
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show Δ gets its number
    say = Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False)
    again = _again(arguments)
    try:
        with _interruptible():
            wrong = _run(arguments)
        sys.stdout.flush()
    except InputError as error:
        return _failure(f"{error}", WRONG_USAGE, arguments, say)
    except KeyboardInterrupt:
        return _failure(f"Interrupted.{again and f' Finished work is kept. {again}'}", INTERRUPTED, arguments, say)
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        _drop_output()
        return FAILED
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = f"{_out_of_memory(arguments)}{again and f' Finished work is kept. {again}'}"
        return _failure(said, FAILED, arguments, say)
    except OSError as error:  # a full disk, a folder that may not be written or was removed
        _failure(_failed(error, arguments), FAILED, arguments, say)
        _drop_output()
        return FAILED
    return FAILED if wrong else DONE


def _failure(said: str, code: int, words: Sequence[str], say: Terminal) -> int:
    """Print why a command failed, with --json also as a document on stdout; the exit code."""
    launched.report(said if code == INTERRUPTED else f"error: {said}", say)
    if "--json" in words and launched.is_first():
        with suppress(OSError):  # a full disk may be why it failed
            document({"error": {"message": printable(said), "exit_code": code}})
    return code


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, SIGTERM interrupts like Ctrl-C. Processes of one launcher end at once, because it has its own report."""
    process, is_main = os.getpid(), threading.current_thread() is threading.main_thread()
    if not is_main or launched.is_shared() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(number: int, _: Any) -> None:
        if os.getpid() != process:  # a forked child
            os._exit(128 + number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _drop_output() -> None:
    """Drop what stdout can't write, which Python would try again at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(error: OSError, words: Sequence[str]) -> str:
    """A sentence about a full disk, a removed folder or another failure, and how to continue."""
    folder = None if error.filename is None else Path(os.fsdecode(error.filename))
    again = _again(words)
    kept = again and " Finished work is kept."
    if folder is not None and error.errno in files.FULL:
        folder = (folder if folder.is_dir() else folder.parent).absolute()
        return f"There is no space left on the disk of {folder}.{kept} Make room, then try again. {again}".rstrip()
    if folder is not None and isinstance(error, FileNotFoundError) and again and not folder.parent.exists():
        missing = [parent for parent in folder.parents if not parent.exists()]
        anew = _again([word for word in words if word != "--resume"], resumes=False)
        return f"{missing[-1]} was removed while the command ran. {anew.replace('Continue', 'Start again', 1)}"
    return f"{error}.{kept and f'{kept} Fix this first. {again}'}"


def _out_of_memory(words: Sequence[str]) -> str:
    """A sentence on what to do when memory runs out."""
    if words[0] == "train":
        return "There isn't enough memory. Lower --micro-batch or --max-new-tokens, or try --dtype bfloat16."
    return "There isn't enough memory. Try --batch-size 1, --dtype bfloat16 or shorter texts."


def _run(words: Sequence[str]) -> bool | None:
    """Print the version or help, or run a command. True if the command found something wrong."""
    if not words or words[0] in HELP:
        usage.print_commands({name: (row.group, usage.summary(row.options)) for name, row in COMMANDS.items()})
    elif words[0] == "--version":
        out.print(f"internal-policy {internal_policy.__version__}")
    elif words[0] in (completion.PRINT, completion.WRITE):
        completion.complete(COMMANDS, words, partial(parsing.parsed, COMMANDS))
    elif words[0] not in COMMANDS:
        raise parsing.unknown_command(words[0], COMMANDS)
    elif HELP & {*words}:
        usage.print_page(words[0], usage.page(COMMANDS[words[0]].options))
    else:
        options = parsing.parse(COMMANDS, words)
        _check_installed(options)
        with _short_names():
            return COMMANDS[words[0]].run(options)
    return None


@contextmanager
def _short_names() -> Iterator[None]:
    """Raise InputError for a name inside that is too long for a file."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or error.filename is None:
            raise
        name = os.fsdecode(error.filename)
        raise InputError(f"'{name:.60}...' has {len(name):,} characters, too many for the name of a file.") from error


def _again(words: Sequence[str], *, resumes: bool = True) -> str:
    """How to continue an interrupted command, in a sentence; empty if there is nothing to continue.

    A training begins anew unless it `resumes`.
    """
    if not words or words[0] not in CONTINUED:
        return ""
    resumes = resumes and words[0] == "train"
    if launched.is_shared():
        return f"Continue with the same launch command{' and --resume' if resumes else ''}."
    if resumes:
        words = [*(word for word in words if word not in ("--force", "--resume")), "--resume"]
    return f"Continue with: {shlex.join(['internal-policy', *words])}"


def _check_installed(options: Any) -> None:
    """Raise InputError if a package is missing that the command needs to run a model."""
    if isinstance(options, train.Train):
        require("train", *MODELS, "trl", "yaml")
    elif isinstance(options, ModelOptions | families.Families):
        require("models", *MODELS)
