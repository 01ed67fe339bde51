"""Print to the terminal with control characters escaped, so that no text can move the cursor or set the title."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters except newline and tab, and characters that change the direction of writing."""


class Terminal(Console):
    """Rich's console, with control characters printed as escapes such as `\\x1b`; Rich's own markup still works."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string passes through here, also in cells and titles."""
        return super().render_str(visible(text), **options)

    @property
    def draws(self) -> bool:
        """Whether a line can be drawn anew. FORCE_COLOR, which Jupyter sets, only makes a pipe or a file coloured."""
        return self.is_terminal and (not os.environ.get("FORCE_COLOR") or self.file.isatty())


def visible(text: str) -> str:
    """The text with control characters escaped, such as `\\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_json(text: str) -> str:
    """Equivalent JSON with these characters escaped; they can only occur inside its strings."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


out = Terminal(soft_wrap=True, highlight=False)


def paragraph(text: str) -> None:
    """A line of plain text; on a terminal it is broken between words."""
    out.print(escape(text), soft_wrap=not out.is_terminal, emoji=False)


def commands(lines: Sequence[str]) -> None:
    """Commands to run next, each on a line of its own, ready to copy; nothing if there are none."""
    if lines:
        out.print("Next:")
    for line in lines:
        out.print(f"  {escape(line)}", emoji=False)


def uncut(table: Table) -> None:
    """A table whose words and numbers are whole: on a narrow terminal its headings are broken between words."""
    if _wanted(table) > out.width:
        for column in table.columns:
            column.header = str(column.header).replace(" ", "\n")
        table.padding = (0, 0)
    table.width = wanted if (wanted := _wanted(table)) > out.width else None  # rich caps the width of `print`
    out.print(table)


def _wanted(table: Table) -> int:
    return out.measure(table, options=out.options.update(width=1000)).maximum


def document(value: Any) -> None:
    """A value as JSON on stdout; numbers that are not finite become null."""
    print(visible_json(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False)))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
