"""Every figure of a scan by its name, from the data to the drawing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from internal_policy.errors import InputError
from internal_policy.look import comparison, layer_figures, statistics, targets, token_figures, tokens, view
from internal_policy.look.statistics import Average
from internal_policy.look.theme import Style
from internal_policy.look.view import About, View

MOST = 4
"""The most scans side by side."""


@dataclass(frozen=True)
class Choice:
    """What a figure shows of a scan, beyond the view; each figure takes what it uses."""

    average: Average = "tokens"
    """Every token counts the same, or every rollout does."""
    site: str = "resid_post"
    """The site, for distribution, readouts and tokens."""
    measure: str = "entropy"
    """The measure, for tokens, distribution and readouts; for compare, entropy or change."""
    rollout: int | None = None
    """The rollout, for tokens and cell; None for the first of the view."""
    position: int | None = None
    """The position in the response, for cell, and for tokens of a long one; None for the first of the view."""
    layer: int = 0
    """The layer of a cell, from 0; one past the last is the model's own policy."""
    style: Style = "screen"
    """For a screen, or for print."""


@dataclass(frozen=True)
class Data:
    """What a figure is drawn from: plain values, which a caller may keep, show or change."""

    frames: Mapping[str, pd.DataFrame]
    """The frames by measure, readout or number of the scan, whichever differs."""
    abouts: Sequence[About]
    """What the figure says of each scan, or of each readout."""
    choice: Choice
    """What was chosen, with the rollout and position where none was named."""


def _flow(views: Sequence[View], choice: Choice) -> Data:
    return _means(views, choice, "entropy")


def flow(data: Data) -> go.Figure:
    """Entropy from layer to layer (Fig. 2)."""
    return layer_figures.flow(data.frames["entropy"], data.abouts[0], data.choice.style)


def _changes(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    return Data({"change": view.changes(one, choice.average)}, [view.about(one)], choice)


def change(data: Data) -> go.Figure:
    """Entropy change of layers, attention and FFN with the stages (Fig. 3)."""
    found = data.frames["change"]
    spans = targets.spans(targets.stages(found))
    return layer_figures.change(found, data.abouts[0], spans, data.choice.style)


def norm_control(data: Data) -> go.Figure:
    """Entropy change as direction and norm."""
    return layer_figures.norm_control(data.frames["change"], data.abouts[0], data.choice.style)


def _residual(views: Sequence[View], choice: Choice) -> Data:
    return _means(views, choice, "cosine", "norm")


def residual(data: Data) -> go.Figure:
    """Cosine of the modules' outputs with the residual stream, and norms (Fig. 12)."""
    return layer_figures.residual(data.frames["cosine"], data.frames["norm"], data.abouts[0], data.choice.style)


def _convergence(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    kl = view.means(one, "kl", choice.average)
    settled = statistics.means(tokens.settled(one), "settled", choice.average)
    return Data({"kl": kl, "settled": settled}, [view.about(one)], choice)


def convergence(data: Data) -> go.Figure:
    """KL to the model's own policy, and where its first choice settles."""
    return layer_figures.convergence(data.frames["kl"], data.frames["settled"], data.abouts[0], data.choice.style)


def _readouts(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    read = [replace(one, readout=name) for name in view.check(one)["selection"]["readouts"]]
    frames = {each.readout: view.means(each, choice.measure, choice.average) for each in read}
    if choice.site not in set(frames[read[0].readout]["site"]):
        raise view.absent(read[0], choice.measure, choice.site)
    return Data(frames, [view.about(each) for each in read], choice)


def readouts(data: Data) -> go.Figure:
    """A measure under every readout of the scan."""
    columns = list(zip(data.abouts, data.frames.values(), strict=True))
    return layer_figures.readouts(columns, data.choice.measure, data.choice.site, data.choice.style)


def _distribution(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    return Data({choice.measure: tokens.quantiles(one, choice.site, choice.measure)}, [view.about(one)], choice)


def distribution(data: Data) -> go.Figure:
    """A measure's quantiles over the tokens."""
    choice = data.choice
    found = data.frames[choice.measure]
    return layer_figures.distribution(found, data.abouts[0], choice.site, choice.measure, choice.style)


def _tokens(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    rollout = view.first_rollout(one) if choice.rollout is None else choice.rollout
    response = tokens.window(tokens.response(one, rollout), choice.position)
    found = tokens.cells(one, rollout, choice.site, choice.measure)
    shown = found[found["position"].isin(response["position"])]
    return Data({choice.measure: shown, "response": response}, [view.about(one)], replace(choice, rollout=rollout))


def heatmap(data: Data) -> go.Figure:
    """A measure at every token and layer of one response; of a long one the 512 tokens around a position."""
    choice = data.choice
    cells, response = data.frames[choice.measure], data.frames["response"]
    return token_figures.tokens(cells, response, data.abouts[0], choice.site, choice.measure, choice.style)


def _cell(views: Sequence[View], choice: Choice) -> Data:
    (one,) = views
    rollout = view.first_rollout(one) if choice.rollout is None else choice.rollout
    position = one.first if choice.position is None else choice.position
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
    return Data(frames, [view.about(one) for one in views], choice)


def compare(data: Data) -> go.Figure:
    """Up to four scans side by side at relative depth; entropy or change."""
    columns = list(zip(data.abouts, data.frames.values(), strict=True))
    return layer_figures.compare(columns, "change" if data.choice.measure == "change" else "entropy", data.choice.style)


def _means(views: Sequence[View], choice: Choice, *measures: str) -> Data:
    (one,) = views
    return Data({name: view.means(one, name, choice.average) for name in measures}, [view.about(one)], choice)


class Entry(NamedTuple):
    """A figure of a scan."""

    read: Callable[[Sequence[View], Choice], Data]
    """From the scans to the data."""
    draw: Callable[[Data], go.Figure]
    """From the data to the figure; its docstring says what the figure shows."""


FIGURES: Mapping[str, Entry] = {
    "flow": Entry(_flow, flow),
    "change": Entry(_changes, change),
    "norm-control": Entry(_changes, norm_control),
    "residual": Entry(_residual, residual),
    "convergence": Entry(_convergence, convergence),
    "readouts": Entry(_readouts, readouts),
    "distribution": Entry(_distribution, distribution),
    "tokens": Entry(_tokens, heatmap),
    "cell": Entry(_cell, cell),
    "compare": Entry(_compare, compare),
}
"""Name -> how it is drawn. All but `compare` take one view."""
CHOICES = {
    "readouts": ("entropy", "logprob", "rank", "top1", "kl", "norm", "cosine"),
    "distribution": ("entropy", "logprob", "rank", "kl", "norm", "cosine", "entropy_at_input_norm"),
    "tokens": ("entropy", "change", "logprob", "rank", "kl", "norm", "cosine", "entropy_at_input_norm"),
    "compare": ("entropy", "change"),
}
"""Figures that draw one measure -> the measures they can draw."""


def data(name: str, views: Sequence[View], choice: Choice) -> Data:
    """What the figure of that name is drawn from. Raises InputError for what it can't draw or a scan lacks."""
    if choice.measure not in (known := CHOICES.get(name, (choice.measure,))):
        raise InputError(f"Can't draw {name} by '{choice.measure}'. Choose one of {', '.join(known)}.")
    if name != "compare" and len(views) != 1:
        raise InputError(f"Only compare draws several scans. Give {name} one.")
    return FIGURES[name].read(views, choice)


def draw(name: str, views: Sequence[View], choice: Choice) -> go.Figure:
    """The figure of that name. Raises InputError as `data` does."""
    return FIGURES[name].draw(data(name, views, choice))
