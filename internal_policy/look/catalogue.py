"""Every figure of a scan by its name, from the scan on disk to the drawing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import plotly.graph_objects as go

from internal_policy.errors import InputError
from internal_policy.look import layer_figures, statistics, token_figures, tokens, view
from internal_policy.look.statistics import Average
from internal_policy.look.theme import Style
from internal_policy.look.view import View

WINDOW = 512
"""The most tokens that a heatmap shows at once."""


@dataclass(frozen=True)
class Choice:
    """What a figure shows of a scan, beyond the view; each figure takes what it uses."""

    average: Average = "tokens"
    """Every token counts the same, or every rollout does."""
    site: str = "resid_post"
    """Of the distribution, of readouts and of the heatmap."""
    measure: str = "entropy"
    """Of the heatmap, of the distribution and of readouts; for a comparison entropy or change."""
    rollout: int | None = None
    """Whose tokens are shown; None for the first of the view."""
    position: int | None = None
    """Of a cell; None for the first of the view."""
    layer: int = 0
    """Of a cell, from 0; one past the last for the model's own policy."""
    style: Style = "screen"
    """For a screen, or for print."""


def flow(views: Sequence[View], choice: Choice) -> go.Figure:
    """Entropy from layer to layer (Fig. 2)."""
    (one,) = views
    return layer_figures.flow(means(one, "entropy", choice.average), view.about(one), choice.style)


def change(views: Sequence[View], choice: Choice) -> go.Figure:
    """Entropy change of layers, attention and FFN with the stages (Fig. 3)."""
    (one,) = views
    found = changes(one, choice.average)
    return layer_figures.change(found, view.about(one), statistics.spans(statistics.stages(found)), choice.style)


def norm_control(views: Sequence[View], choice: Choice) -> go.Figure:
    """Entropy change as direction and norm."""
    (one,) = views
    return layer_figures.norm_control(changes(one, choice.average), view.about(one), choice.style)


def residual(views: Sequence[View], choice: Choice) -> go.Figure:
    """Cosine of the modules' outputs with the residual stream, and norms (Fig. 12)."""
    (one,) = views
    cosine, norm = means(one, "cosine", choice.average), means(one, "norm", choice.average)
    return layer_figures.residual(cosine, norm, view.about(one), choice.style)


def convergence(views: Sequence[View], choice: Choice) -> go.Figure:
    """KL to the model's own policy, and where its first choice settles."""
    (one,) = views
    settled = statistics.means(tokens.settled(one), "settled", choice.average)
    return layer_figures.convergence(means(one, "kl", choice.average), settled, view.about(one), choice.style)


def readouts(views: Sequence[View], choice: Choice) -> go.Figure:
    """A measure under every readout of the scan."""
    (one,) = views
    read = [replace(one, readout=name) for name in view.check(one)["selection"]["readouts"]]
    columns = [(view.about(each), means(each, choice.measure, choice.average)) for each in read]
    if choice.site not in set(columns[0][1]["site"]):
        raise view.absent(read[0], choice.measure, choice.site)
    return layer_figures.readouts(columns, choice.measure, choice.site, choice.style)


def distribution(views: Sequence[View], choice: Choice) -> go.Figure:
    """A measure's quantiles over the tokens."""
    (one,) = views
    found = tokens.quantiles(one, choice.site, choice.measure)
    return layer_figures.distribution(found, view.about(one), choice.site, choice.measure, choice.style)


def heatmap(views: Sequence[View], choice: Choice) -> go.Figure:
    """A measure at every token and layer of one response; of a long one the first tokens."""
    (one,) = views
    rollout = first_rollout(one) if choice.rollout is None else choice.rollout
    response = tokens.response(one, rollout)[:WINDOW]
    found = tokens.cells(one, rollout, choice.site, choice.measure)
    shown = found[found["position"] <= response["position"].iloc[-1]]
    return token_figures.tokens(shown, response, view.about(one), choice.site, choice.measure, choice.style)


def cell(views: Sequence[View], choice: Choice) -> go.Figure:
    """What the policies of a layer would say at one position."""
    (one,) = views
    rollout = first_rollout(one) if choice.rollout is None else choice.rollout
    position = one.first if choice.position is None else choice.position
    found = tokens.predictions(one, rollout, position, choice.layer)
    return token_figures.predictions(found, view.about(one), choice.layer, position, choice.style)


def compare(views: Sequence[View], choice: Choice) -> go.Figure:
    """Up to four scans side by side at relative depth; entropy or change."""
    records = view.comparable(views)
    if not 2 <= len(views) <= 4:
        raise InputError(f"A comparison takes two to four scans, not {len(views)}; name the others with --against.")
    frames = []
    for one, record in zip(views, records, strict=True):
        found = changes(one, choice.average) if choice.measure == "change" else means(one, "entropy", choice.average)
        frames.append((view.about(one), statistics.relative(found, record["n_layers"])))
    return layer_figures.compare(frames, "change" if choice.measure == "change" else "entropy", choice.style)


CHOICES = {
    "readouts": ("entropy", "logprob", "rank", "top1", "kl", "norm", "cosine"),
    "distribution": ("entropy", "logprob", "rank", "kl", "norm", "cosine", "entropy_at_input_norm"),
    "tokens": ("entropy", "change", "logprob", "rank", "kl", "norm", "cosine", "entropy_at_input_norm"),
    "compare": ("entropy", "change"),
}
"""Figures that draw one measure -> the measures they can draw."""


def draw(name: str, views: Sequence[View], choice: Choice) -> go.Figure:
    """The figure of that name. Raises InputError for a measure that it can't draw."""
    if choice.measure not in (known := CHOICES.get(name, (choice.measure,))):
        raise InputError(f"Can't draw {name} by '{choice.measure}'. Choose one of {', '.join(known)}.")
    return FIGURES[name](views, choice)


FIGURES: Mapping[str, Callable[[Sequence[View], Choice], go.Figure]] = {
    "flow": flow,
    "change": change,
    "norm-control": norm_control,
    "residual": residual,
    "convergence": convergence,
    "readouts": readouts,
    "distribution": distribution,
    "tokens": heatmap,
    "cell": cell,
    "compare": compare,
}
"""Name -> what draws it. All but `compare` take one view."""


def means(one: View, measure: str, average: Average = "tokens") -> pd.DataFrame:
    """`analysis.means` of a view. Raises InputError if the measure was not made."""
    found = statistics.means(view.layers(one), measure, average)
    if not len(found):
        raise view.absent(one, measure)
    return found


def changes(one: View, average: Average = "tokens") -> pd.DataFrame:
    """`analysis.changes` of a view. Raises InputError if the sites or the entropy were not measured."""
    found = statistics.changes(view.layers(one), average)
    if len(found):
        return found
    chosen = view.check(one)["selection"]
    if "entropy" in chosen["measures"] and any({*pair} <= {*chosen["sites"]} for pair in statistics.CHANGES.values()):
        raise view.absent(one, "change")
    raise InputError(
        f"{one.folder} has no entropy before and after a layer, attention or FFN. Scan again with --sites all and "
        "--measures all."
    )


def first_rollout(one: View) -> int:
    """The number of the first rollout of a view."""
    return int(view.rollouts(one)["rollout"].iloc[0])
