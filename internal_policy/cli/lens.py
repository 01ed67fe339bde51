"""`internal-policy lens`: print what each layer would say next after a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text as Styled

from internal_policy.cli import configuration, progress, texts
from internal_policy.cli.common import JsonOptions, ModelOptions, Text
from internal_policy.cli.console import document, out, uncut, visible
from internal_policy.errors import InputError
from internal_policy.measure.sites import SITES
from internal_policy.models import loading, tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from internal_policy.look.lens import LensTable

CELL = 12
"""The most columns of a terminal that a token of the grid takes."""


@dataclass(frozen=True, kw_only=True)
class Lens(JsonOptions, ModelOptions):
    """Print what each layer would say next after a text.

    Nothing is saved.

    For example:
    $ internal-policy lens "47 + 385 ="
    $ internal-policy lens "The capital of France is" --model Qwen/Qwen3-4B
    $ internal-policy lens "The capital of France is" --target " Paris"
    $ internal-policy lens "The capital of France is" --all-positions
    """

    group: ClassVar = "What to print"
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")]
    """The text to read, in quotation marks; you can give several. - reads it from stdin."""
    chat: bool = False
    """Put the text through the model's chat template, as the user's question."""
    target: Text = None
    """Token whose rank and probability to print, such as " Paris" (mind the space); by default the model's own top
    token."""
    site: str = "resid_post"
    """Where to read: resid_pre, attn_in, attn_out, resid_mid, mlp_in, mlp_out or resid_post (the layer's output)."""
    readout: Literal["norm", "raw"] = "norm"
    """Unembed through the final norm (norm, the logit lens) or as it is (raw, the paper)."""
    top_k: int = 1
    """How many of each layer's most likely tokens to print."""
    all_positions: bool = False
    """Print the top token of every layer at every token of the text, as many as the terminal has room for."""


def run(options: Lens) -> None:
    """Read each text and print it."""
    _check_words(options)
    given = texts.read(options.text, "TEXT")
    progress.quiet()
    config = configuration.load(options.checkpoint)
    tokenizer = tokenizers.load_tokenizer(options.checkpoint)
    _check(options, given, config, tokenizer)
    from internal_policy.lenses import next_token
    from internal_policy.look import lens

    model = loading.load_model(options.checkpoint, config, **options.arguments)
    tables = [
        next_token.table(
            model,
            tokenizer,
            text,
            target=options.target,
            site=options.site,
            readout=options.readout,
            top_k=options.top_k,
            all_positions=options.all_positions,
            chat={} if options.chat else None,
        )
        for text in given
    ]
    if options.json:
        document({"model": options.model, "texts": [_as_json(table) for table in tables]})
        return
    for number, table in enumerate(tables):
        if number:
            out.print()
        out.print(_plain(lens.heading(table)))
        if options.all_positions:
            out.print(_grid(table, out.width))
        else:
            uncut(_by_layer(table, out.width))
        _sentences(table, options.target)


def _check_words(options: Lens) -> None:
    """Refuse what is wrong with any model, before one is looked for. Raises InputError."""
    if not options.text:
        raise InputError('lens needs a text, such as "The capital of France is". See internal-policy lens --help.')
    if options.site not in SITES:
        raise InputError(f"There is no site '{options.site}'. Choose from {', '.join(SITES)}.")
    if options.top_k < 1:
        raise InputError(f"--top-k is {options.top_k}. Use 1 or more.")
    if options.top_k > 1 and options.all_positions and not options.json:
        raise InputError("--all-positions prints one token per cell. Leave out --top-k, or add --json.")


def _check(options: Lens, given: Sequence[str], config: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check everything before the model is loaded, and note how a question and a target are read. Raises InputError."""
    from internal_policy.lenses import next_token
    from internal_policy.models.vocabulary import token_texts
    from internal_policy.tasks.preview import preview
    from internal_policy.tasks.prompts import continuation

    if options.chat and tokenizer.chat_template is None:
        raise InputError(f"{options.model} has no chat template. Leave out --chat.")
    for text in given:
        ids = next_token.encode(tokenizer, text, {} if options.chat else None)
        next_token.check(config, ids, options.site, options.top_k)
        if options.chat:
            progress.note(preview(tokenizer, ids, {}))
        if options.target is None:
            continue
        pieces = token_texts(tokenizer, continuation(tokenizer, ids, text, options.target))
        if len(pieces) > 1:
            progress.note(f"{options.target!r} is {len(pieces)} tokens. The first, {pieces[0]!r}, is the target.")


def _by_layer(table: "LensTable", width: int) -> Table:
    """The last position of a text, one row a layer; tokens after the top one share `width` columns with the others."""
    from internal_policy.look import lens

    shown, rows = lens.by_layer(table), lens.last(table)
    drawn, others = Table(box=box.SIMPLE_HEAD), lens.others(table)
    headings = [str(name).replace(" ", "\n", 1) if any(others) else str(name) for name in shown]
    for heading, name in zip(headings, shown, strict=True):
        drawn.add_column(_plain(heading), justify="left" if name == "top token" else "right", no_wrap=True)
    if any(others):
        cells = ([*heading.split("\n"), *shown[name]] for heading, name in zip(headings, shown, strict=True))
        taken = sum(max(map(cell_len, column)) + 3 for column in cells)
        drawn.add_column("then")
        others = [_lines(pairs, width - taken - 4) for pairs in others]
    for (_, row), rank, then in zip(shown.iterrows(), rows["target_rank"], others, strict=True):
        if row["layer"] == "model":
            drawn.add_section()
        texts = [*row, "\n".join(then)] if then else row
        drawn.add_row(*(_plain(text) for text in texts), style="bold" if rank == 1 else "")
    return drawn


def _lines(pairs: Sequence[str], width: int) -> list[str]:
    """The pairs in lines of at most `width` columns, at least one a line."""
    lines: list[str] = []
    for pair in pairs:
        if lines and cell_len(joined := f"{lines[-1]}  {pair}") <= width:
            lines[-1] = joined
        else:
            lines.append(pair)
    return lines


def _grid(table: "LensTable", width: int) -> Table:
    """Top tokens by layer and position: as many of the last positions as `width` columns have room for."""
    from internal_policy.look import lens

    read, rows = lens.grid(table)
    columns = list(zip(read, *(row.tokens for row in rows), strict=True))
    room, first = width - 9, len(read)
    while first and (room := room - min(CELL, max(map(cell_len, columns[first - 1]))) - 3) >= 0:
        first -= 1
    left = f"the last {len(read) - first} of {len(read)} tokens; " if first else ""
    drawn = Table(
        caption=f"{left}top token after each token; · is a space; bold: probability of 0.5 or more",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    drawn.add_column("layer", justify="right")
    for text in read[first:]:
        drawn.add_column(_plain(text), no_wrap=True, max_width=CELL, overflow="ellipsis")
    for row in rows:
        if row.layer == "model":
            drawn.add_section()
        cells = zip(row.tokens[first:], row.probabilities[first:], strict=True)
        drawn.add_row(row.layer, *(_plain(token, _style(sure)) for token, sure in cells))
    return drawn


def _plain(text: str, style: str = "") -> Styled:
    """A text without markup, emoji codes or control characters."""
    return Styled(visible(text), style=style)


def _style(probability: float) -> str:
    from internal_policy.look import lens

    return "bold" if probability >= lens.SURE else "dim" if probability < lens.FAINT else ""


def _sentences(table: "LensTable", target: str | None) -> None:
    """The sentence about the target, and a hint where only a space tells it from the model's own top token."""
    from internal_policy.look import lens

    out.print(_plain(lens.verdict(table)))
    own = lens.last(table)["token"].iloc[-1]
    if target is not None and own == f" {target}":
        progress.note(f"The model's own top token is {own!r}, with a space. To follow it: --target {own!r}")


def _as_json(table: "LensTable") -> dict[str, Any]:
    """One text and its rows."""
    from internal_policy.look import lens

    return {
        **{str(name): value for name, value in table.attrs.items() if name != "model"},
        "from_layer": lens.from_layer(table),
        "verdict": lens.verdict(table),
        "rows": table.to_dict("records"),
    }
