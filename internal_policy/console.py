"""Print to a terminal, where no text that came from elsewhere can move the cursor, change colours or set the title."""

import re
from typing import Any

from rich.console import Console
from rich.text import Text

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but for the end of a line and the tab, and what turns the direction of writing."""


class Terminal(Console):
    """Rich's console, to which every text is printed as it reads, such as `\\x1b[31m`; its own markup still works."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Text of a string, wherever it is printed: as it is, in a cell or in a title."""
        return super().render_str(visible(text), **options)


def visible(text: str) -> str:
    """The text with each control character as its escape, such as `\\x1b` for the one that begins a command."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_json(text: str) -> str:
    """JSON that holds the same values and none of these characters, which can only be inside its strings."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
