"""Read docstrings as Markdown: a Sphinx extension that turns them into reStructuredText for autodoc."""

import re
from collections import defaultdict
from typing import Any

from sphinx.application import Sphinx

documented: dict[str, list[str]] = defaultdict(list)
"""Page -> what autodoc put on it, as Markdown, for the page's twin."""


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("autodoc-process-signature", keep_signature)
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": False}


def keep_signature(app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> None:
    """Begin a section of the twin with the signature of an object."""
    level = "###" if what in ("method", "property", "attribute") else "##"
    short = re.sub(r"~?(?:\w+\.)+(\w+)", r"\1", f"{signature or ''}{f' -> {returns}' if returns else ''}")
    called = f"\n```py\n{name.rpartition('.')[2]}{short}\n```\n" if short else ""
    documented[app.env.docname].append(f"{level} {name.removeprefix('internal_policy.')}\n{called}")


def convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep a docstring for the twin, and turn it into reStructuredText in place."""
    documented[app.env.docname].append("\n".join(lines).strip() + "\n")
    lines[:] = restructured(lines)


def restructured(lines: list[str]) -> list[str]:
    """Markdown as reStructuredText: single backticks doubled, and indented code announced."""
    result: list[str] = []
    code, above = False, ""
    for line in lines:
        if line.startswith("    ") and not above.strip() and not code:
            result += [".. code-block:: python", ""]
            code = True
        elif line.strip() and not line.startswith("    "):
            code = False
        result.append(line if code else re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line))
        above = line
    return result
