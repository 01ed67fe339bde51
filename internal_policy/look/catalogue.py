"""Every figure of a scan or a training run by its name, from the data to the drawing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go

from internal_policy.errors import InputError
from internal_policy.look import layer_figures, runs, statistics, token_figures, tokens, training_figures, view
from internal_policy.look.runs import Run
from internal_policy.look.statistics import Average
from internal_policy.look.theme import Style
from internal_policy.look.view import View


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
    return layer_figures.flow(view.means(one, "entropy", choice.average), view.about(one), choice.style)


def change(views: Sequence[View], choice: Choice) -> go.Figure:
    """Entropy change of layers, attention and FFN with the stages (Fig. 3)."""
    (one,) = views
    found = view.changes(one, choice.average)
    return layer_figures.change(found, view.about(one), statistics.spans(statistics.stages(found)), choice.style)


def norm_control(views: Sequence[View], choice: Choice) -> go.Figure:
    """Entropy change as direction and norm."""
    (one,) = views
    return layer_figures.norm_control(view.changes(one, choice.average), view.about(one), choice.style)


def residual(views: Sequence[View], choice: Choice) -> go.Figure:
    """Cosine of the modules' outputs with the residual stream, and norms (Fig. 12)."""
    (one,) = views
    cosine, norm = view.means(one, "cosine", choice.average), view.means(one, "norm", choice.average)
    return layer_figures.residual(cosine, norm, view.about(one), choice.style)


def convergence(views: Sequence[View], choice: Choice) -> go.Figure:
    """KL to the model's own policy, and where its first choice settles."""
    (one,) = views
    settled = statistics.means(tokens.settled(one), "settled", choice.average)
    return layer_figures.convergence(view.means(one, "kl", choice.average), settled, view.about(one), choice.style)


def readouts(views: Sequence[View], choice: Choice) -> go.Figure:
    """A measure under every readout of the scan."""
    (one,) = views
    read = [replace(one, readout=name) for name in view.check(one)["selection"]["readouts"]]
    columns = [(view.about(each), view.means(each, choice.measure, choice.average)) for each in read]
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
    rollout = view.first_rollout(one) if choice.rollout is None else choice.rollout
    response = tokens.response(one, rollout)[: token_figures.WINDOW]
    found = tokens.cells(one, rollout, choice.site, choice.measure)
    shown = found[found["position"] <= response["position"].iloc[-1]]
    return token_figures.tokens(shown, response, view.about(one), choice.site, choice.measure, choice.style)


def cell(views: Sequence[View], choice: Choice) -> go.Figure:
    """What the policies of a layer would say at one position."""
    (one,) = views
    rollout = view.first_rollout(one) if choice.rollout is None else choice.rollout
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
        found = (
            view.changes(one, choice.average)
            if choice.measure == "change"
            else view.means(one, "entropy", choice.average)
        )
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
    if name != "compare" and len(views) != 1:
        raise InputError(f"Only compare draws several scans. Give {name} one.")
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


@dataclass(frozen=True)
class RunChoice:
    """What a figure shows of a training run; each figure takes what it uses."""

    measure: str | None = None
    """Of dynamics; None for the first that was measured."""
    site: str | None = None
    """Of dynamics; None for the first that has the measure."""
    style: Style = "screen"
    """For a screen, or for print."""


def dynamics(run: Run, choice: RunChoice) -> go.Figure:
    """A measure by layer and training step, with the reward below (Figs. 5 and 7)."""
    frame, metrics = run.dynamics(), run.metrics()
    known = runs.measures(frame)
    if not known:
        raise InputError(f"{run.folder} has no measure of its layers. Train with --scan-every.")
    measure = choice.measure or known[0]
    if measure not in known:
        raise InputError(f"{run.folder} has no {measure}. Choose one of {', '.join(known)}.")
    sites = runs.sites(frame, measure)
    site = choice.site or sites[0]
    if site not in sites:
        raise InputError(f"{run.folder} has no {measure} at {site}. Choose one of {', '.join(sites)}.")
    caption = runs.caption(run.name, metrics, frame)
    return training_figures.dynamics(frame, metrics, caption, measure, site, choice.style)


def trained(run: Run, choice: RunChoice) -> go.Figure:
    """The layer that is trained first beside later ones, and its entropy change (Fig. 5)."""
    frame, metrics = run.dynamics(), run.metrics()
    layer = runs.trained(metrics, frame)
    if layer is None:
        raise InputError(f"{run.folder} doesn't say which layer was trained or watched. Train with --scan-every.")
    return training_figures.trained(frame, metrics, layer, runs.caption(run.name, metrics, frame), choice.style)


def training(run: Run, choice: RunChoice) -> go.Figure:
    """Entropy, reward, clip fraction and perplexity by training step (Fig. 6)."""
    metrics = run.metrics()
    return training_figures.training(metrics, runs.caption(run.name, metrics), choice.style)


def pass_at_k(run: Run, choice: RunChoice) -> go.Figure:
    """Pass@k over k, a curve for each evaluated model."""
    return training_figures.pass_at_k(run.pass_at_k(), run.name, choice.style)


RUN_FIGURES: Mapping[str, Callable[[Run, RunChoice], go.Figure]] = {
    "dynamics": dynamics,
    "trained": trained,
    "training": training,
    "pass-at-k": pass_at_k,
}
"""Name -> what draws it of a training run."""


def draw_run(name: str, run: Run, choice: RunChoice) -> go.Figure:
    """The figure of a training run of that name. Raises InputError if the run lacks its data."""
    return RUN_FIGURES[name](run, choice)
