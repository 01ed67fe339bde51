"""Give every page a Markdown twin, and list the pages in llms.txt: a Sphinx extension."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import docstrings
import generated
from sphinx.application import Sphinx

FENCED = r"^(`{3,}|:{3,})\{%s\}[ ]*(?P<argument>.*)\n(?P<body>(?:.*\n)*?)\1[ ]*$"
"""A directive of MyST, by its name."""
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^):#\s]+)\.(?:md|ipynb)(#[^)\s]*)?\)")
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^):\s]+)\)")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the twins and llms.txt beside the HTML pages."""
    if error or app.builder.name != "html":
        return
    folder, out = Path(app.srcdir), Path(app.outdir)
    kept = docstrings.documented(app)
    objects = {name: kept[name] for name in app.env.domains["py"].data["objects"] if name in kept}  # as on the page
    twins = {name: twin(folder, name, objects) for name in pages(folder)}
    for name, text in twins.items():
        (out / f"{name}.html.md").write_text(text, encoding="utf-8")
    (out / "llms.txt").write_text(llms(twins["index"]), encoding="utf-8")


def pages(folder: Path) -> list[str]:
    """The names of all pages: the index, then what its toctrees list, in order."""
    index = (folder / "index.md").read_text(encoding="utf-8")
    trees = [match["body"] for match in re.finditer(FENCED % "toctree", index, re.MULTILINE)]
    return ["index", *(line for tree in trees for line in tree.splitlines() if line and line[0] != ":")]


def twin(folder: Path, name: str, objects: Mapping[str, str] = MappingProxyType({})) -> str:
    """A page as plain Markdown, with links to other twins, and what it includes in its place.

    `objects` are the signatures and docstrings of what pages document.
    """
    path = folder / f"{name}.md"
    if path.exists():
        text = resolved(path)
    else:
        text = notebook(json.loads((folder / f"{name}.ipynb").read_text(encoding="utf-8")))
    text = LINK.sub(r"[\1](\2.html.md\3)", generated.beside(text))
    text = re.sub(FENCED % "toctree" + r"\n*", "", text, flags=re.MULTILINE)
    text = re.sub(FENCED % "eval-rst", lambda found: documented(found["body"], objects), text, flags=re.MULTILINE)
    up = "../" * name.count("/")
    return IMAGE.sub(lambda image: f"![{image[1]}]({up}_images/{Path(image[2]).name})", text).strip() + "\n"


def resolved(path: Path) -> str:
    """The text of a page with the files that it includes, without its front matter and comments."""
    text = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(r"^<!--.*?-->\n*", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(FENCED % "include", lambda found: included(path, found), text, flags=re.MULTILINE)


def included(path: Path, found: re.Match[str]) -> str:
    """The text of an included file, its headings as many levels lower as the directive says."""
    text = resolved(path.parent / found["argument"].strip())
    start = re.search(r":start-line: (\d+)", found["body"])
    offset = re.search(r":heading-offset: (\d+)", found["body"])
    text = "".join(text.splitlines(keepends=True)[int(start[1]) if start else 0 :])
    return re.sub(r"^#", "#" * (1 + (int(offset[1]) if offset else 0)), text, flags=re.MULTILINE).strip()


def documented(body: str, objects: Mapping[str, str]) -> str:
    """The objects that directives of autodoc name, each with its members."""
    names = re.findall(r"^\.\. auto\w+:: (\S+)", body, re.MULTILINE)
    return "\n".join(
        text for name in names for key, text in objects.items() if key == name or key.startswith(f"{name}.")
    )


def notebook(content: dict[str, Any]) -> str:
    """The texts, code and printed outputs of a notebook."""
    return "\n\n".join(part for cell in content["cells"] for part in parts(cell))


def parts(cell: dict[str, Any]) -> list[str]:
    """A cell, then each of its outputs that has a text."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    outputs = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"])
    shown = ("".join(output).strip("\n") for output in outputs)
    return [f"```python\n{source}\n```", *(f"```text\n{text}\n```" for text in shown if text)]


def llms(index: str) -> str:
    """The list of pages for language models (https://llmstxt.org), from the twin of the index: a line for each page."""
    title, summary, *parts = re.split(r"\n{2,}", index.strip())
    lists = (re.sub(r"\n  +", " ", part) for part in parts if part.startswith(("## ", "- [")))
    return "\n\n".join([title, f"> {summary}", *lists]) + "\n"
