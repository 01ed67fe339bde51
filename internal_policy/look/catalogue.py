"""Every figure of a scan by its name, from the data to the drawing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from internal_policy.errors import InputError
from internal_policy.look import ablation as ablations
from internal_policy.look import (
    ablation_figure,
    choices,
    comparison,
    headings,
    layer_figures,
    statistics,
    targets,
    token_figures,
    tokens,
    view,
)
from internal_policy.look.statistics import Average
from internal_policy.look.theme import Style
from internal_policy.look.view import About, View

MOST = 4
"""Most scans side by side."""
FILTER = ("readout", "outcome", "where", "positions")
"""What a view chooses of a scan."""


@dataclass(frozen=True)
class Choice:
    """What a figure shows of a scan besides the view. Each figure takes what it uses."""

    average: Average = "tokens"
    """Every token counts the same, or every rollout does."""
    site: str = "resid_post"
    """Site of distribution, readouts and tokens."""
    measure: str = "entropy"
    """Measure of tokens, distribution and readouts; for compare, entropy or change."""
    rollout: int | None = None
    """Rollout of tokens and cell; None for the first in the view."""
    position: int | None = None
    """Position in the response, for cell and for tokens of a long response; None for the first in the view."""
    layer: int = 0
    """Layer of a cell, from 0; one past the last is the model's own policy."""
    style: Style = "screen"
    """`screen`, or `paper` for print, where layers count from 1."""


@dataclass(frozen=True)
class Data:
    """The data of a figure: plain values that a caller may keep, show or change."""

    frames: Mapping[str, pd.DataFrame]
    """The frames, by measure, by readout or by number of the scan."""
    abouts: Sequence[About]
    """The caption's facts about each scan or readout."""
    choice: Choice
    """The choice, with the rollout and position filled in where none was given."""
    views: Sequence[View] = ()
    """The views that were read."""


def _flow(views: Sequence[View], choice: Choice) -> Data:
    return _means(views, choice, "entropy")


def flow(data: Data) -> go.Figure:
    """Entropy from layer to layer (Fig. 2)."""
    return layer_figures.flow(data.frames["entropy"], data.abouts[0], data.choice.style)


def _changes(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    return Data({"change": view.changes(one, choice.average)}, [view.about(one)], choice)


def change(data: Data) -> go.Figure:
    """Entropy change of each layer, attention block and FFN, with the stages (Fig. 3)."""
    found = data.frames["change"]
    spans = targets.spans(targets.stages(found))
    return layer_figures.change(found, data.abouts[0], spans, data.choice.style)


def norm_control(data: Data) -> go.Figure:
    """Entropy change split into direction and norm."""
    return layer_figures.norm_control(data.frames["change"], data.abouts[0], data.choice.style)


def _residual(views: Sequence[View], choice: Choice) -> Data:
    return _means(views, choice, "cosine", "norm")


def residual(data: Data) -> go.Figure:
    """Cosine of attention and FFN with the residual stream, and their norms (Fig. 12)."""
    return layer_figures.residual(data.frames["cosine"], data.frames["norm"], data.abouts[0], data.choice.style)


def _convergence(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    kl = view.means(one, "kl", choice.average)
    settled = statistics.means(tokens.settled(one), "settled", choice.average)
    return Data({"kl": kl, "settled": settled}, [view.about(one)], choice)


def convergence(data: Data) -> go.Figure:
    """KL to the model's own policy, and where its top token settles."""
    return layer_figures.convergence(data.frames["kl"], data.frames["settled"], data.abouts[0], data.choice.style)


def _readouts(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    read = [replace(one, readout=name) for name in view.check(one)["selection"]["readouts"]]
    frames = {each.readout: view.means(each, choice.measure, choice.average) for each in read}
    if choice.site not in set(frames[read[0].readout]["site"]):
        raise view.absent(read[0], choice.measure, choice.site)
    return Data(frames, [view.about(each) for each in read], choice)


def readouts(data: Data) -> go.Figure:
    """A measure with each readout of the scan."""
    columns = list(zip(data.abouts, data.frames.values(), strict=True))
    return layer_figures.readouts(columns, data.choice.measure, data.choice.site, data.choice.style)


def _distribution(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    return Data({choice.measure: tokens.quantiles(one, choice.site, choice.measure)}, [view.about(one)], choice)


def distribution(data: Data) -> go.Figure:
    """Quantiles of a measure over the tokens."""
    choice = data.choice
    found = data.frames[choice.measure]
    return layer_figures.distribution(found, data.abouts[0], choice.site, choice.measure, choice.style)


def _tokens(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    rollout = _rollout(one, choice)
    response = tokens.window(tokens.response(one, rollout), choice.position)
    found = tokens.cells(one, rollout, choice.site, choice.measure)
    shown = found[found["position"].isin(response["position"])]
    return Data({choice.measure: shown, "response": response}, [view.about(one)], replace(choice, rollout=rollout))


def _rollout(one: View, choice: Choice) -> int:
    """The chosen rollout, or the first of the view. Raises InputError for one that isn't in view."""
    if choice.rollout is None:
        return view.first_rollout(one)
    view.check_rollout(one, choice.rollout)
    return choice.rollout


def heatmap(data: Data) -> go.Figure:
    """A measure at every token and layer of one response; of a long one the 512 tokens around a position."""
    choice = data.choice
    cells, response = data.frames[choice.measure], data.frames["response"]
    return token_figures.tokens(cells, response, data.abouts[0], choice.site, choice.measure, choice.style)


def _cell(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    rollout = _rollout(one, choice)
    position = one.first if choice.position is None else choice.position
    tokens.window(tokens.response(one, rollout), position)
    found = tokens.predictions(one, rollout, position, choice.layer)
    return Data({"predictions": found}, [view.about(one)], replace(choice, rollout=rollout, position=position))


def cell(data: Data) -> go.Figure:
    """What the policies of a layer would say at one position."""
    choice, found = data.choice, data.frames["predictions"]
    return token_figures.predictions(found, data.abouts[0], choice.layer, choice.position or 0, choice.style)


def _compare(views: Sequence[View], choice: Choice) -> Data:
    records = comparison.comparable(views)
    if not 2 <= len(views) <= MOST:
        raise InputError(f"A comparison takes two to four scans, not {len(views)}. Name the others with --against.")
    frames = {}
    for number, (one, record) in enumerate(zip(views, records, strict=True)):
        change = choice.measure == "change"
        found = view.changes(one, choice.average) if change else view.means(one, "entropy", choice.average)
        frames[str(number)] = comparison.relative(found, record["n_layers"])
    named = headings.labels(views, headings.room(len(views), choice.style))
    return Data(
        frames, [replace(view.about(one), label=label) for one, label in zip(views, named, strict=True)], choice
    )


def compare(data: Data) -> go.Figure:
    """Entropy or entropy change of up to four scans, or readouts of one, side by side at relative depth."""
    columns = list(zip(data.abouts, data.frames.values(), strict=True))
    return layer_figures.compare(columns, "change" if data.choice.measure == "change" else "entropy", data.choice.style)


def _ablation(views: Sequence[View], choice: Choice) -> Data:
    (one,) = (replace(each, first=0, last=None) for each in views)
    folder, kept = ablations.newest(one), view.rollouts(one)["rollout"]
    found = ablations.table(folder, kept)
    per_rollout = found.drop_duplicates("rollout")
    facts = {"rollouts": len(per_rollout), "tokens": int(per_rollout["tokens"].sum())}
    frames = {"effect": ablations.means(found, choice.average), "change": view.changes(one, choice.average)}
    if len(rewards := ablations.rewards(folder)):
        frames["reward"] = rewards
    return Data(frames, [replace(view.about(one), **facts)], choice)


def ablation(data: Data) -> go.Figure:
    """What skipping each layer, attention block or FFN does to the model's policy, beside its entropy change."""
    frames = data.frames
    about, style = data.abouts[0], data.choice.style
    return ablation_figure.ablation(frames["effect"], frames["change"], frames.get("reward"), about, style)


def _means(views: Sequence[View], choice: Choice, *measures: str) -> Data:
    (one,) = views
    return Data({name: view.means(one, name, choice.average) for name in measures}, [view.about(one)], choice)


class Entry(NamedTuple):
    """A figure of a scan."""

    read: Callable[[Sequence[View], Choice], Data]
    """From the scans to the data."""
    draw: Callable[[Data], go.Figure]
    """From the data to the figure. Its docstring describes the figure."""
    uses: tuple[str, ...]
    """What can be chosen: fields of `Choice` and `View`, or `against` for more scans. Every figure has a style."""


FIGURES: Mapping[str, Entry] = {
    "flow": Entry(_flow, flow, ("average", *FILTER)),
    "change": Entry(_changes, change, ("average", *FILTER)),
    "norm-control": Entry(_changes, norm_control, ("average", *FILTER)),
    "residual": Entry(_residual, residual, ("average", *FILTER)),
    "convergence": Entry(_convergence, convergence, ("average", *FILTER)),
    "readouts": Entry(_readouts, readouts, ("average", "measure", "site", "outcome", "where", "positions")),
    "distribution": Entry(_distribution, distribution, ("measure", "site", *FILTER)),
    "tokens": Entry(_tokens, heatmap, ("measure", "site", "rollout", "position", *FILTER)),
    "cell": Entry(_cell, cell, ("rollout", "position", "layer", *FILTER)),
    "ablation": Entry(_ablation, ablation, ("average", "readout", "outcome", "where")),
    "compare": Entry(_compare, compare, ("average", "measure", "against", *FILTER)),
}
"""Name -> how to draw it, and what can be chosen."""
USES: Mapping[str, tuple[str, ...]] = {name: entry.uses for name, entry in FIGURES.items()}
"""Name -> what can be chosen of the figure."""
CHOICES = {
    "readouts": ("entropy", "logprob", "rank", "top1", "kl", "norm", "cosine", *view.CONTROLS),
    "distribution": tuple(name for name in view.OF_TOKENS if name != "change"),
    "tokens": view.OF_TOKENS,
    "compare": ("entropy", "change"),
}
"""Figure -> the measures it can draw, for figures of a single measure."""


def data(name: str, views: Sequence[View], choice: Choice) -> Data:
    """The data of the figure with that name.

    Raises InputError for a choice that it doesn't use, what it can't draw, or what a scan lacks.
    """
    choices.check(name, choices.changed(choice), USES)
    if choice.measure not in (known := CHOICES.get(name, (choice.measure,))):
        raise InputError(f"Can't draw {name} by '{choice.measure}'. Choose one of {', '.join(known)}.")
    if "against" not in USES[name] and len(views) != 1:
        raise InputError(f"Only compare draws several scans. Give a single scan to {name}.")
    return replace(FIGURES[name].read(views, choice), views=tuple(views))


def draw(name: str, views: Sequence[View], choice: Choice) -> go.Figure:
    """The figure with that name. Raises InputError like `data`."""
    return FIGURES[name].draw(data(name, views, choice))
