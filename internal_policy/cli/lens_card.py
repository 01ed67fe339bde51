"""Print how a lens was fitted and how far it can be trusted."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from internal_policy import files
from internal_policy.cli import outputs, progress
from internal_policy.cli.console import document, out, paragraph, uncut, visible

if TYPE_CHECKING:
    from internal_policy.lenses.card import Card


def run(name: str, output: Path | None, *, force: bool, as_json: bool) -> None:
    """Print the card of a lens, and write it to `output` as Markdown if that is given. Raises InputError."""
    if output is not None:
        outputs.check_file(output, force, ".md", inputs=[name])
    from internal_policy.lenses import card, card_text, file, source

    path = source.find(name).path
    shown = card.of(file.read(path, *file.sizes(path, name), name))
    if output is not None:
        files.write_text(output, card_text.markdown(shown, Path(name).name))
        progress.note(f"Wrote {output}.")
    printed(shown, name, as_json=as_json)


def printed(card: "Card", path: str | Path, *, as_json: bool = False) -> None:
    """Print a card: its table, and what it means."""
    from internal_policy.lenses import card_text

    if as_json:
        document({"lens": str(path), **card_text.as_dict(card)})
        return
    first, *sentences = card_text.sentences(card)
    paragraph(first)
    headings, *rows = card_text.table(card)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(headings):
        table.add_column(_plain(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_plain, row))
    uncut(table)
    paragraph(card_text.legend(card))
    out.print()
    for sentence in sentences:
        paragraph(sentence)


def _plain(text: str) -> Any:
    return Text(visible(text))
