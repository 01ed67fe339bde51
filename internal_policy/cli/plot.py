"""`internal-policy plot`: draw one figure of a scan, an alignment or a training run."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from internal_policy.cli import inventory, outputs, progress
from internal_policy.cli.common import JsonOptions, Number, OutputFile, OutputOptions, ScanName, Text, ViewOptions
from internal_policy.cli.console import document
from internal_policy.errors import InputError, require

if TYPE_CHECKING:
    from internal_policy.look.runs import RunTables
    from internal_policy.look.view import View

Others = Annotated[tuple[str, ...], tyro.conf.arg(metavar="SCAN")]


OfScan = Literal[
    "flow",
    "change",
    "norm-control",
    "residual",
    "convergence",
    "readouts",
    "distribution",
    "tokens",
    "cell",
    "ablation",
    "compare",
]
OfRun = Literal["dynamics", "steps", "trained", "layer", "exam", "training", "seeds", "pass-at-k"]
OfAlignment = Literal["alignment"]
Figure = Literal[OfScan, OfAlignment, OfRun]


OF_TOKENS = ("tokens", "cell")
"""Figures of single tokens, which are drawn through the final norm if that was measured."""


Measure = Literal[
    "entropy",
    "change",
    "logprob",
    "rank",
    "top1",
    "kl",
    "norm",
    "cosine",
    "entropy_at_input_norm",
    "renyi_half",
    "renyi_2",
    "logit_scale",
    "entropy_at_input_scale",
    "entropy_shuffled",
    "entropy_random",
    "probability",
    "change_direction",
    "change_norm",
]


@dataclass(frozen=True, kw_only=True)
class Plot(JsonOptions, OutputOptions, ViewOptions):
    """Draw one figure of a scan, an alignment or a training run.

    The figures of a scan are:

      flow          entropy from layer to layer (Fig. 2 of the paper)
      change        entropy change, with the stages (Fig. 3)
      norm-control  entropy change, split into direction and norm
      residual      cosines with the residual stream, and norms (Fig. 12)
      convergence   KL to the model's policy, and where its top token settles
      readouts      a measure through every readout, in one figure
      distribution  spread over the tokens
      tokens        layers x tokens of a response; .html is the lens grid, with the
                    top token in each cell, and the others are a heatmap
      cell          what the policies of a layer would say at a token
      ablation      what `ablate` found, beside the entropy change
      compare       up to four scans side by side

    The figure of an alignment is:

      alignment     share of GRPO's gain by layer, with the cost of a step

    The figures of a training run are:

      dynamics      a measure by layer and step, with the reward (Fig. 5)
      steps         a measure by layer at each step, with a slider that plays them,
                    and its change since the first
      trained       the trained layer compared with later ones
      layer         a measure at one layer by step, of up to six runs
      exam          Avg@K and Pass@K on held-out problems by step, with the training
                    reward, of up to six runs
      training      reward, entropy and clipping by step, of up to six runs
      seeds         BuPO against GRPO, with intervals over seeds
      pass-at-k     Pass@k of evaluated models

    Of these, a study of checkpoints has dynamics, steps and layer.

    The file is .html (which needs no network), .png, .svg or .pdf.

    For example:
    $ internal-policy plot demo-qwen3 flow -o flow.png
    $ internal-policy plot 3fa9 change --style paper -o change.pdf
    $ internal-policy plot demo-qwen3 tokens --rollout 3 --measure change -o t.html
    $ internal-policy plot demo-qwen3 compare --against demo-llama -o compare.svg
    $ internal-policy plot 3fa9 tokens --against 77c0 -o cells.html
    $ internal-policy plot demo-qwen3-alignment alignment -o gain.html
    $ internal-policy plot experiments/bupo dynamics --difference -o steps.html
    $ internal-policy plot studies/my-run-3fa9c1 steps -o steps.html
    $ internal-policy plot runs/one training --against runs/two -o runs.html
    """

    group: ClassVar = "Figure"
    scan: ScanName
    """Scan, alignment, training run or study to draw: its folder, its name in `internal-policy ls` or the first digits
    of that, or a bundled scan such as demo-qwen3."""
    figure: Annotated[Figure, tyro.conf.Positional, tyro.conf.arg(metavar="FIGURE")]
    """Figure to draw, from the list above."""
    style: Literal["screen", "paper"] = "screen"
    """Style of the figure; paper is black on white, sized for a column of print, and has no title."""
    average: Annotated[Literal["tokens", "rollouts"] | None, tyro.conf.arg(metavar="{tokens,rollouts}")] = None
    """Weights in means: every token counts the same (as in the paper, and by default), or every rollout."""
    against: Others = ()
    """Scans that compare draws beside the first. tokens as .html takes one, and draws a response of both cell by cell
    with their difference. layer, training and seeds draw runs beside the first."""
    difference: bool = False
    """Draw differences from step 0 in dynamics, trained and layer."""
    smooth: Number = None
    """Steps that each point of training (by default 1) or seeds (by default 10) averages."""
    method: Text = None
    """Method that seeds compares with GRPO, such as "demo-qwen3 · BuPO, layer 6, 8 internal steps" or "RLOO"; by
    default BuPO with the most seeds."""
    measure: Annotated[Measure | None, tyro.conf.arg(metavar="MEASURE")] = None
    """Measure that tokens, distribution, readouts and compare draw: entropy, change, logprob, rank, top1, kl, norm,
    cosine, entropy_at_input_norm or probability (of the top token). Only tokens and compare draw change, only readouts
    draws top1, only tokens and distribution draw entropy_at_input_norm, and only the lens grid draws probability, which
    is its default; that of the others is entropy. tokens, distribution and readouts also draw what `scan --controls`
    measured: renyi_half, renyi_2, logit_scale, entropy_at_input_scale, entropy_shuffled and entropy_random. dynamics,
    steps and layer draw what was measured, also change_direction and change_norm."""
    site: Text = None
    """Site that tokens, distribution, readouts, alignment, dynamics and layer draw: resid_pre, attn_in, attn_out,
    resid_mid, mlp_in, mlp_out or resid_post, which is the default."""
    rollout: Number = None
    """Number of the response that tokens and cell draw; by default the first."""
    position: Number = None
    """Position of the token that cell and tokens draw, counted from 0 in the response; by default the first."""
    step: Number = None
    """Step that steps shows first; by default the last."""
    layer: Number = None
    """Layer that cell or layer draws, counted from 0; one past the last is the model's own policy. By default 0 in
    cell, and the trained layer in layer."""
    output: OutputFile
    """File to write: .html, .png, .svg or .pdf."""


def run(options: Plot) -> None:
    """Write one figure."""
    require("app", "plotly")
    from internal_policy.look import export

    export.check(options.output)
    outputs.check_file(options.output, options.force)
    _draw(options)
    progress.note(f"Wrote {options.output}.")
    if options.json:
        size = options.output.stat().st_size
        document({"output": str(options.output), "bytes": size, "figure": options.figure})


def _draw(options: Plot) -> None:
    """Draw the figure into its file. Raises InputError."""
    from internal_policy.look import alignment, alignment_catalogue, catalogue, choices, export, run_catalogue
    from internal_policy.look.lens_grid import response
    from internal_policy.look.view import for_tokens

    uses = {**catalogue.USES, **run_catalogue.USES, **alignment_catalogue.USES}
    known = {name for names in uses.values() for name in names}
    given = {field.name: getattr(options, field.name) for field in fields(options) if field.name in known}
    given = {name: value for name, value in given.items() if value != getattr(Plot, name)}
    refused = [name for name in given if name != "against" or not is_grid(options)]
    choices.check(options.figure, refused, uses, lambda name: f"--{name}")
    if options.figure in alignment_catalogue.FIGURES:
        found = alignment.read(inventory.find(options.scan, "alignment").folder)
        drawn = alignment_catalogue.AlignmentChoice(**given, style=options.style)
        export.write(alignment_catalogue.draw(options.figure, [found], drawn), options.output)
        return
    if options.figure in run_catalogue.FIGURES:
        chosen = {name: value for name, value in given.items() if hasattr(run_catalogue.RunChoice, name)}
        choice = run_catalogue.RunChoice(**chosen, style=options.style)
        opened = [run_of(name) for name in (options.scan, *options.against)]
        export.write(run_catalogue.draw(options.figure, opened, choice), options.output)
        return
    views = views_of((options.scan, *options.against), options)
    if options.figure in OF_TOKENS and options.readout is None:
        views = [replace(one, readout=for_tokens(one.source).readout) for one in views]
    chosen = {name: value for name, value in given.items() if hasattr(catalogue.Choice, name)}
    if is_grid(options):
        text = compared(views, **chosen) if options.against else response.html(views[0], **chosen)
        export.write_page(text, options.output)
        return
    export.write(catalogue.draw(options.figure, views, catalogue.Choice(**chosen, style=options.style)), options.output)


def run_of(name: str) -> "RunTables":
    """A training run or study by its name in `internal-policy ls` or its folder. Raises InputError."""
    from internal_policy.look.runs import RunTables
    from internal_policy.look.study import open_study

    found = inventory.find(name, "run", "study")
    if found.kind == "study":
        return replace(open_study(found.folder), name=found.name)
    return RunTables(found.folder, found.name if found.folder != Path(name) else found.folder.name)


def is_grid(options: Plot) -> bool:
    """Whether the figure is a lens grid, which only a browser can draw, rather than a heatmap."""
    return options.figure == "tokens" and options.style == "screen" and options.output.suffix.lower() == ".html"


def compared(views: "Sequence[View]", rollout: int | None = None, **chosen: Any) -> str:
    """A page with a response of each of two scans, cell by cell. Raises InputError for more scans."""
    from internal_policy.look import pairs
    from internal_policy.look.lens_grid import pair

    if len(views) > 2:
        raise InputError(f"tokens compares two scans, but --against names {len(views) - 1}. Name one.")
    a, b = pairs.best(views[0], views[1], rollout)
    if reason := pairs.obstacle(a, b):
        progress.note(reason)
    return pair.html(a, b, **chosen)


def views_of(names: Sequence[str], options: ViewOptions) -> "list[View]":
    """A view of each scan, as the options ask. Raises InputError, also for a scan that is given twice."""
    views = [view_of(name, options) for name in names]
    folders = [Path(str(view.source)).resolve() for view in views]
    for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
        if folder in folders[:number]:
            raise InputError(f"{name} is given twice. Name each scan once.")
    return views


def view_of(name: str, options: ViewOptions) -> "View":
    """A view of a scan, as the options ask. Raises InputError."""
    from internal_policy.look.view import View, check, default
    from internal_policy.scans import positions

    folder = inventory.find_scan(name)
    first, last = positions.parse(options.positions)
    view = View(folder, options.readout or default(folder).readout, options.outcome, first, last, tuple(options.where))
    check(view)
    return view
