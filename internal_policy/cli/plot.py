"""`internal-policy plot`: draw one figure of a scan."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from internal_policy.cli import outputs, progress
from internal_policy.cli.common import Number, OutputFile, OutputOptions, ScanName, ViewOptions
from internal_policy.errors import InputError, require

if TYPE_CHECKING:
    from internal_policy.look.view import View

Others = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SCAN")]


Figure = Literal[
    "flow", "change", "norm-control", "residual", "convergence", "readouts", "distribution", "tokens", "cell", "compare"
]


Measure = Literal["entropy", "change", "logprob", "rank", "top1", "kl", "norm", "cosine", "entropy_at_input_norm"]


@dataclass(frozen=True, kw_only=True)
class Plot(OutputOptions, ViewOptions):
    """Draw one figure of a scan as .html, .png, .svg or .pdf.

    The figures are:

      flow          entropy from layer to layer (Fig. 2 of the paper)
      change        entropy change, with the stages (Fig. 3)
      norm-control  entropy change, split into direction and norm
      residual      cosines with the residual stream, and norms (Fig. 12)
      convergence   KL to the model's policy, and where its first choice settles
      readouts      raw, norm and a lens in one figure
      distribution  spread over the tokens
      tokens        heatmap of a response, token by layer
      cell          what the policies of a layer would say at a token
      compare       up to four scans side by side

    An .html file needs no network.

    For example:
    $ internal-policy plot demo-qwen3 flow -o flow.png
    $ internal-policy plot 3fa9 change --style paper -o change.pdf
    $ internal-policy plot demo-qwen3 tokens --rollout 3 --measure change -o t.html
    $ internal-policy plot demo-qwen3 compare --against demo-llama -o compare.svg
    """

    group: ClassVar = "Figure"
    scan: ScanName
    """Scan to draw: its folder, the first digits of its name in `internal-policy ls`, or demo-qwen3 or demo-llama."""
    figure: Annotated[Figure, tyro.conf.Positional, tyro.conf.arg(metavar="FIGURE")]
    """Figure to draw, from the list above."""
    style: Literal["screen", "paper"] = "screen"
    """Look of the figure; paper is black on white, sized for a column of print, and has no title."""
    average: Literal["tokens", "rollouts"] = "tokens"
    """What counts the same in a mean: every token (the paper) or every rollout."""
    against: Others = ()
    """Scans that compare draws beside the first."""
    measure: Annotated[Measure, tyro.conf.arg(metavar="MEASURE")] = "entropy"
    """Measure that tokens, distribution, readouts and compare draw: entropy, change, logprob, rank, top1, kl, norm,
    cosine or entropy_at_input_norm. Only tokens and compare draw change, only readouts draws top1, and only
    tokens and distribution draw entropy_at_input_norm."""
    site: str = "resid_post"
    """Site that tokens, distribution and readouts draw: resid_pre, attn_in, attn_out, resid_mid, mlp_in, mlp_out or
    resid_post."""
    rollout: Number = None
    """Number of the response that tokens and cell draw; by default the first."""
    position: Number = None
    """Position of the token that cell and tokens draw, counted from 0 in the response; by default the first."""
    layer: int = 0
    """Layer that cell draws, counted from 0; one past the last is the model's own policy. By default 0."""
    output: OutputFile
    """File to write: .html, .png, .svg or .pdf."""


def run(options: Plot) -> None:
    """Write one figure."""
    require("app", "plotly")
    from internal_policy.look import catalogue, export

    export.check(options.output)
    outputs.check_file(options.output, options.force)
    views = [view_of(name, options) for name in (options.scan, *options.against)]
    if options.against and options.figure != "compare":
        raise InputError(f"--against only applies to compare, but {options.figure} draws one scan.")
    choice = catalogue.Choice(
        options.average, options.site, options.measure, options.rollout, options.position, options.layer, options.style
    )
    export.write(catalogue.draw(options.figure, views, choice), options.output)
    progress.note(f"Wrote {options.output}.")


def view_of(name: str, options: ViewOptions) -> "View":
    """What the options say of a scan to look at. Raises InputError."""
    from internal_policy.look.view import View, check, default
    from internal_policy.scans import store

    folder = store.find(name)
    first, last = positions(options.positions)
    view = View(folder, options.readout or default(folder).readout, options.outcome, first, last)
    check(view)
    return view


def positions(text: str | None) -> tuple[int, int | None]:
    """Read `0-99`, `100-` or `7`: the first position and the last, None for the end. Raises InputError."""
    if text is None:
        return 0, None
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()) or (last and int(last) < int(first)):
        raise InputError(f"--positions is '{text}'. Write for example 0-99, 100- or 7.")
    return int(first), int(last) if last else None if dash else int(first)
