"""Read docstrings as Markdown: a Sphinx extension that turns them into reStructuredText for autodoc."""

import re
from typing import Any

from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": False}


def documented(app: Sphinx) -> dict[str, str]:
    """Object -> its signature and docstring as Markdown, kept with the pages so that an unchanged one has them too."""
    return app.env.__dict__.setdefault("documented_as_markdown", {})


def sign(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Keep a signature for the twin. Classes have none: they are what functions return, or take what TRL's do."""
    if what == "class":
        signature = returns = ""
    arrow = f" -> {returns}" if returns else ""
    short = re.sub(r"~?(?:\w+\.)+(\w+)", r"\1", f"{signature or ''}{arrow}")
    level = "####" if what in ("method", "property", "attribute") else "###"
    called = f"```py\n{name.rpartition('.')[2]}{short}\n```\n\n" if short else ""
    documented(app)[name] = f"{level} {name.rpartition('.')[2]}\n\n{called}"
    return (signature, returns) if what == "class" else None


def convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep a docstring for the twin, and turn it into reStructuredText in place."""
    head = documented(app).get(name, f"#### {name.rpartition('.')[2]}\n\n")
    documented(app)[name] = head + "\n".join(lines).strip() + "\n"
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
