"""The help of a command, as data and as printed: its options by group, with examples that can be copied."""

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from rich.markup import escape

from internal_policy.cli.console import out

ORDER = ("Arguments", "Model", "Data", "Sampling")
"""Groups that come first in the help of a command; a command's own groups follow, and "Output" is last."""
EXAMPLE = 'internal-policy lens "The capital of France is" --model Qwen/Qwen3-4B'
"""What a newcomer may try first."""
INDENT = 24
"""Column at which the help of an option begins."""
METAVARS = {int: "INT", float: "FLOAT", Path: "PATH"}
"""Type of an option -> what the help calls its value; TEXT for others."""


@dataclass(frozen=True)
class Option:
    """An option of a command, or a positional argument."""

    name: str
    """Its field in the options of the command, such as `top_k`."""
    flags: tuple[str, ...]
    """How it is typed, such as `-o` and `--output`; none for a positional argument."""
    metavar: str
    """What the help calls its value; empty for a switch."""
    help: str
    """What it does, in one paragraph."""
    default: str
    """Its value if it isn't given, as it would be typed; empty if there is none, or if `help` says it."""
    required: bool
    """Whether the command needs it."""
    several: bool
    """Whether it takes any number of values at once."""
    choices: tuple[str, ...]
    """The values that it offers, in their order; none if it takes others too."""

    @property
    def typed(self) -> str:
        """How it is typed with its value, such as `--top-k INT`."""
        value = f"{self.metavar}..." if self.several else self.metavar
        return f"{', '.join(self.flags)} {value}".strip()

    @property
    def short(self) -> str:
        """The shortest way to type it, such as `-o FILE`."""
        return f"{self.flags[0]} {self.metavar}" if self.flags else self.typed


@dataclass(frozen=True)
class Page:
    """The help of a command."""

    summary: str
    """One sentence."""
    text: tuple[str, ...]
    """More paragraphs; one whose lines are indented is a list, and keeps its lines."""
    examples: tuple[str, ...]
    """Commands to copy."""
    groups: Mapping[str, tuple[Option, ...]]
    """The options by the title of their group, in the order of the help."""


def page(options: type) -> Page:
    """The help of a command with these options, a dataclass.

    Its docstring is a sentence, paragraphs and, after "For example:", commands. A field's docstring is its help. An
    option belongs to the `group` of the class that declares it first, so that a command can give it another default.
    """
    text, _, examples = inspect.cleandoc(options.__doc__ or "").partition("For example:")
    _, *paragraphs = [_joined(part) for part in text.strip().split("\n\n")]
    commands = tuple(line.strip().removeprefix("$ ") for line in examples.splitlines() if line.strip())
    return Page(summary(options), tuple(paragraphs), commands, _groups(options))


def summary(options: type) -> str:
    """The first sentence of the help of a command with these options."""
    return _joined(inspect.cleandoc(options.__doc__ or "").partition("\n\n")[0])


def _groups(options: type) -> dict[str, tuple[Option, ...]]:
    hints, texts = get_type_hints(options, include_extras=True), docstrings(options)
    found: dict[str, list[Option]] = {}
    for field in dataclasses.fields(options):
        option = _option(field, hints[field.name], texts.get(field.name, ""))
        title = _group(options, field.name) if option.flags else "Arguments"
        found.setdefault(title, []).append(option)
    places = {title: number for number, title in enumerate(ORDER)} | {"Output": len(ORDER) + 1}
    return {title: tuple(found[title]) for title in sorted(found, key=lambda title: places.get(title, len(ORDER)))}


def _group(options: type, name: str) -> str:
    """The group of the class that declares a field first."""
    first = [cls for cls in options.__mro__ if name in inspect.get_annotations(cls)][-1]
    return vars(first).get("group", "Options")


def docstrings(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, on one line; that of a class wins over that of its bases."""
    found = {}
    for cls in reversed(kind.__mro__[:-1]):
        for field, below in itertools.pairwise(_classes(cls.__module__)[cls.__name__].body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = _joined(inspect.cleandoc(text))
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module by their names."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _joined(paragraph: str) -> str:
    """A paragraph on one line; one whose lines are indented as it is."""
    return paragraph if paragraph.startswith("  ") else " ".join(paragraph.split())


def _option(field: "dataclasses.Field[Any]", hint: Any, text: str) -> Option:
    hint, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    asked: Any = next((extra for extra in extras if hasattr(extra, "metavar")), tyro.conf.arg())
    positional = tyro.conf.Positional in extras
    default = None if field.default is MISSING else field.default
    silent = isinstance(default, bool) or default in (None, (), "", "{}") or "by default" in text.lower()
    metavar = "" if hint is bool else asked.metavar or _metavar(hint)
    return Option(
        field.name,
        () if positional else (*(asked.aliases or ()), f"--{field.name.replace('_', '-')}"),
        metavar,
        text,
        "" if silent else str(default),
        field.default is MISSING,
        get_origin(hint) is tuple and tyro.conf.UseAppendAction not in extras,
        tuple(metavar[1:-1].split(",")) if metavar.startswith("{") else _choices(hint),
    )


def _choices(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, which may also be None."""
    literal = next((each for each in (hint, *get_args(hint)) if get_origin(each) is Literal), None)
    return get_args(literal)


def _metavar(hint: Any) -> str:
    choices = _choices(hint)
    return f"{{{','.join(choices)}}}" if choices else METAVARS.get(hint, "TEXT")


def print_commands(commands: Mapping[str, tuple[str, str]]) -> None:
    """Print every command with its group and a sentence, on one screen."""
    out.print("Usage: internal-policy COMMAND [options] | COMMAND --help | --version", markup=False)
    out.print("Read the policy at every layer, attention block and FFN of a language model.")
    before = None
    for name, (group, summary) in commands.items():
        heading = group if group != before else ""
        out.print(f"[bold]{heading:<9}[/][cyan]{name:<10}[/] {escape(summary)}", emoji=False)
        before = group
    out.print(f"[bold]{'Example':<9}[/]{escape(EXAMPLE)}", emoji=False)


def print_page(command: str, shown: Page) -> None:
    """Print the help of a command, as wide as the terminal; examples stay whole lines, to be copied."""
    flagged = [option for options in shown.groups.values() for option in options if option.flags]
    arguments = shown.groups.get("Arguments", ())
    needed = [option.typed if option.required else f"[{option.typed}]" for option in arguments]
    needed += [option.short for option in flagged if option.required]
    _write(" ".join([f"Usage: internal-policy {command}", *needed, *(["[options]"] if flagged else [])]), 9)
    for paragraph in (shown.summary, *shown.text):
        out.print()
        for line in paragraph.split("\n"):
            _write(line, 16 if line.startswith("  ") else 0)
    if shown.examples:
        out.print("\n[bold]Examples[/]")
        for example in shown.examples:
            out.print(f"  {escape(example)}", emoji=False)
    for title, options in shown.groups.items():
        out.print(f"\n[bold]{escape(title)}[/]")
        for option in options:
            _print_option(option)


def _print_option(option: Option) -> None:
    needed = "(required)" if option.required and option.flags else ""
    text = f"{option.help} {needed or (option.default and f'(default: {option.default})')}"
    typed = f"  {option.typed}"
    if len(typed) > INDENT - 2:
        out.print(f"[cyan]{escape(typed)}[/]", emoji=False)
        typed = ""
    for line in _wrapped(text, _width() - INDENT):
        out.print(f"[cyan]{escape(typed)}[/]{' ' * (INDENT - len(typed))}{escape(line)}", emoji=False)
        typed = ""


def _write(line: str, hanging: int) -> None:
    """Print a paragraph, wrapped at spaces, with `hanging` spaces before all lines but the first."""
    for part in _wrapped(line, _width(), " " * hanging) or [""]:
        out.print(escape(part), emoji=False)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of a text, with what is in quotation marks or backticks kept on one line."""
    whole = re.sub(r'"[^"]{1,30}"|`[^`]{1,40}`', lambda quoted: quoted[0].replace(" ", "\xa0"), text)
    lines = textwrap.wrap(whole, width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\xa0", " ") for line in lines]


def _width() -> int:
    """Columns to fill: those of the terminal, but no more than can be read at ease."""
    return max(40, min(out.width, 100))
