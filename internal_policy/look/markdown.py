"""Texts as Markdown, without a meaning of their own there."""

import re
from collections.abc import Sequence


def line(text: str) -> str:
    """A text on one line, without control characters."""
    return " ".join("".join(letter for letter in word if letter.isprintable()) for word in text.split())


def inline(text: str) -> str:
    """A text as part of a line of Markdown, without a meaning of its own there."""
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", line(text))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """The lines of a table. The first `words` columns are aligned to the left, the others, of numbers, to the right."""
    aligned = ["---"] * words + ["---:"] * (len(headings) - words)
    cells = [[inline(name) for name in headings], aligned, *([inline(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]
