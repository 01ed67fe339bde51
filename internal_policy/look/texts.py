"""Names, counts and invisible characters as figures and tables write them."""

import html as markup
import unicodedata
from typing import Literal

from internal_policy.errors import counted
from internal_policy.look.view import About

Style = Literal["screen", "paper"]
"""`screen` has a title and a caption; `paper` is black on white, as wide as a column of print."""

_UNSEEN = {"C", "Z"}
_BLANK = "\u034f\u115f\u1160\u2800\u3164\uffa0"
"""Invisible characters that Unicode classes as letters or marks."""


def short(text: str, most: int = 48) -> str:
    """A model's name or path on one line. A long one keeps its end, which identifies it. Not yet escaped."""
    cut = text if len(text) <= most else "…" + text[1 - most :]
    return "".join(char if char == " " else seen(char) for char in cut)


def inert(text: str) -> str:
    """Escape a text, so that plotly doesn't read it as markup, an entity or (between dollars) maths."""
    return markup.escape(text, quote=False).replace("$", "&#36;")  # plotly doesn't know &quot;


def seen(char: str) -> str:
    """A character, or its number if it is invisible."""
    hidden = unicodedata.category(char)[0] in _UNSEEN or char in _BLANK
    return f"⟨U+{ord(char):04X}⟩" if hidden else char


def n(about: About) -> str:
    """The numbers of rollouts and tokens, in words."""
    return f"{counted(about.rollouts, 'rollout')}, {counted(about.tokens, 'token')}"
