"""`internal-policy lens-card`: print how a lens was fitted and how far it can be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from internal_policy import files
from internal_policy.cli import outputs, progress
from internal_policy.cli.common import JsonOptions, OutputOptions, OutputPath
from internal_policy.cli.console import document, out, paragraph, uncut, visible

if TYPE_CHECKING:
    from internal_policy.lenses.card import Card


@dataclass(frozen=True, kw_only=True)
class LensCard(JsonOptions, OutputOptions):
    """Print how a lens was fitted and how far it can be trusted.

    For each hook point: KL(final || readout) on held-out texts for raw, norm and the lens; how far apart the lenses of
    two halves of the texts are; and how far the map is from a multiple of the identity, which is the logit lens. Files
    from other tools contain no measurements, and their cards say so.

    For example:
    $ internal-policy lens-card lens.safetensors
    $ internal-policy lens-card lens.safetensors --json
    $ internal-policy lens-card lens.safetensors -o README.md
    """

    group: ClassVar = "Lens"
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File of the lens, also a published one, or org/repo:path/in/repo on the hub."""
    output: OutputPath = None
    """File to write the card to as Markdown, .md, such as the README.md of the lens's repository on the hub; by default
    none is written."""


def run(options: LensCard) -> None:
    """Print the card of a lens, and write it if asked to."""
    if options.output is not None:
        outputs.check_file(options.output, options.force, ".md", inputs=[options.file])
    from internal_policy.lenses import card, card_text, file, source

    path = source.find(options.file).path
    shown = card.of(file.read(path, *file.sizes(path, options.file), options.file))
    printed(shown, options.file, as_json=options.json)
    if options.output is not None:
        files.write_text(options.output, card_text.markdown(shown, Path(options.file).name))
        progress.note(f"Wrote {options.output}.")


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
