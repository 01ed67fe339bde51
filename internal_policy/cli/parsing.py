"""Parse the words of a command with tyro, and say in one sentence what is wrong with them."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import tyro
import tyro._errors as wrong  # tyro's only way to hear of errors without its boxes; pyproject.toml holds its version

from internal_policy.cli import usage
from internal_policy.cli.commands import Command
from internal_policy.cli.usage import Option, Page
from internal_policy.errors import InputError, joined

NUMBERS = {"invalid literal for int()": "a whole number", "could not convert string to float": "a number"}
"""How Python's message about a word that should be a number begins -> what it should be."""


def parse(commands: Mapping[str, Command], words: Sequence[str]) -> Any:
    """The options of a command, `words[0]`, from the words after it. Raises InputError if they are wrong."""

    def raised(event: wrong.ParseErrorEvent) -> None:
        raise InputError(_sentence(event, words[0], page))

    page = usage.page(commands[words[0]].options)
    _check_values(words, page)
    with wrong.on_parse_error(raised):
        return parsed(commands, words)


def parsed(commands: Mapping[str, Command], words: Sequence[str]) -> Any:
    """What tyro makes of the words. It exits after printing a script for a shell."""
    return tyro.extras.subcommand_cli_from_dict(
        {name: command.options for name, command in commands.items()},
        args=words,
        prog="internal-policy",
        add_help=False,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _check_values(words: Sequence[str], page: Page) -> None:
    """Raise InputError for an option that takes any number of values and was given none, which tyro allows."""
    several = {
        flag for options in page.groups.values() for option in options if option.several for flag in option.flags
    }
    for word, following in pairwise([*words, "-"]):
        if word in several and following[:1] == "-":
            raise InputError(f"{word} needs a value. {SEE.format(f' {words[0]}')}")


def unknown_command(word: str, commands: Collection[str]) -> InputError:
    """The error for a word that should be a command, with the nearest one."""
    if word.startswith("-"):
        return InputError(f"The first word must be a command, not {word}. See internal-policy --help.")
    near = nearest(word, commands)
    return InputError(f"There is no command '{word}'. {f'Did you mean {near}?' if near else SEE.format('')}")


SEE = "See internal-policy{} --help."


def nearest(word: str, known: Collection[str]) -> str | None:
    """The known word that is most like another one, if any is."""
    return next(iter(get_close_matches(word, known, n=1, cutoff=0.6)), None)


def _sentence(event: wrong.ParseErrorEvent, command: str, page: Page) -> str:
    see = SEE.format(f" {command}")
    match event:
        case wrong.UnrecognizedArgs(tokens=tokens):
            return _unrecognized(tokens, command, page)
        case wrong.MissingArgs(unrecognized_tokens=[_, *_] as tokens):
            return _unrecognized(tokens, command, page)
        case wrong.MissingArgs(missing_arguments=missing):
            return f"{command} needs {joined([_option(each.arg, page).short for each in missing])}. {see}"
        case wrong.BadValue(argument=argument):
            return f"{_name(argument, page)} needs a value. {see}"
        case wrong.InvalidChoice(argument=argument, value=value):
            choices = _option(argument, page).choices
            near = nearest(value, choices)
            hint = f"Did you mean {near}? Choose one of" if near else "Choose one of"
            return f"{_name(argument, page)} is '{value}'. {hint} {', '.join(choices)}."
        case wrong.InstantiationFailure(argument=argument, message=message) if argument is not None:
            value = message.rpartition(": ")[2]
            need = next((words for start, words in NUMBERS.items() if message.startswith(start)), None)
            name = _name(argument, page)
            return f"{name} is {value}. Use {need}." if need else f"{name} can't be used: {message}. {see}"
    return f"These options can't be used together. {see}"


def _option(argument: Any, page: Page) -> Option:
    """The option that an argument of tyro's is."""
    options = [option for group in page.groups.values() for option in group]
    return next(option for option in options if option.name == argument.field.intern_name)


def _name(argument: Any, page: Page) -> str:
    option = _option(argument, page)
    return option.flags[-1] if option.flags else option.metavar


def _unrecognized(tokens: Sequence[str], command: str, page: Page) -> str:
    flags = [flag for options in page.groups.values() for option in options for flag in option.flags]
    token = next((token for token in tokens if token.startswith("-")), None)
    if token is None:
        return f"{command} can't use '{tokens[0]}'. {SEE.format(f' {command}')}"
    name = token.partition("=")[0].replace("_", "-")
    near = nearest(name, flags)
    return f"{command} has no option {name}. {f'Did you mean {near}?' if near else SEE.format(f' {command}')}"
