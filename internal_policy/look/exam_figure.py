"""Figures of what a trained model solves: exams during training, beside the reward, and Pass@k after it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from internal_policy.look import runs, theme
from internal_policy.look.legend import Mark
from internal_policy.look.theme import Style
from internal_policy.look.training_figures import REWARD, RUNS, mark_switch, roomy

TRAINING = Mark("training reward", REWARD.colour, REWARD.symbol)
SETS = [(colour, symbol) for colour, symbol in theme.CURVES if colour != REWARD.colour]
"""Colours and symbols of sets of problems, in order; none is the training reward's."""


def exam(exams: pd.DataFrame, metrics: pd.DataFrame, caption: str = "", style: Style = "screen") -> go.Figure:
    """Avg@K and Pass@K by step with their 95% intervals, a line for each set of problems, and the training reward.

    `exams` is the table of `RunTables.exams`. A reward that rises while Avg@K stays flat is memorised. The reward is on
    the axis of Avg@K if it is between 0 and 1, else below.
    """
    sets = list(dict.fromkeys(exams["problems"].astype(str)))
    sets = [*sets[-1:], *sets[:-1]]  # all problems together first
    lines = {
        Mark(theme.inert(theme.short(name)), *SETS[number % len(SETS)]): exams[exams["problems"] == name]
        for number, name in enumerate(sets)
    }
    together = bool(metrics["reward"].dropna().between(0, 1).all())
    figure, rows = _panels(lines, {TRAINING: runs.overall(exams)}, together=together)
    mark_switch(figure, metrics, rows)
    caption = " · ".join(part for part in (caption, "bands 95%, reward since the exam before") if part)
    theme.layout(figure, "Exam by step", caption, style, height=150 + 170 * rows, above=16)
    return roomy(figure, max(1, len(lines) // 2))


def several(tables: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], style: Style = "screen") -> go.Figure:
    """The exams over all problems of several runs: label -> its exams and metrics, one line a run."""
    marks = {
        label: Mark(theme.inert(theme.short(label)), *RUNS[number % len(RUNS)]) for number, label in enumerate(tables)
    }
    lines = {marks[label]: runs.overall(exams) for label, (exams, _) in tables.items()}
    figure, rows = _panels(lines, lines, together=False)
    for label, (_, metrics) in tables.items():
        mark_switch(figure, metrics, rows, marks[label].colour, words=False)
    caption = f"{len(tables)} runs · bands 95%, reward since the exam before"
    theme.layout(figure, "Exam by step", caption, style, height=150 + 170 * rows, above=16)
    return roomy(figure, len(tables))


def _panels(
    lines: Mapping[Mark, pd.DataFrame], rewards: Mapping[Mark, pd.DataFrame], *, together: bool
) -> tuple[go.Figure, int]:
    """Avg@K, Pass@K and the reward in panels below each other, the reward `together` with Avg@K or last."""
    samples = {int(k) for rows in lines.values() for k in rows["samples"]}
    k = samples.pop() if len(samples) == 1 else "K"
    titles = {f"Avg@{k}": "avg_at_k", f"Pass@{k}": "pass_at_k"}
    if k == 1:  # they are the same
        titles.popitem()
    panels = [(title, measure, lines) for title, measure in titles.items()]
    if together:
        panels.insert(1, ("", "reward", rewards))
    else:
        panels.append(("Training reward", "reward", rewards))
    rows = sum(bool(title) for title, *_ in panels)
    figure, row, seen = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.06), 0, set()
    for title, measure, drawn in panels:
        row += bool(title)
        place: Any = {"row": row, "col": 1}
        for mark, table in drawn.items():
            theme.line(figure, _points(table, measure, mark), mark, x="step", legend=mark not in seen, **place)
            seen.add(mark)
        if title:
            figure.update_yaxes(title={"text": title}, tickformat=".0%" if measure != "reward" else None, **place)
    theme.name_steps(figure, rows)
    return figure, rows


def _points(table: pd.DataFrame, measure: str, mark: Mark) -> pd.DataFrame:
    """Rows for `theme.line`: a measure with its interval and its words; exams without the measure are left out."""
    rows = table.dropna(subset=measure)
    low, high = (rows.get(f"{measure}_{end}", pd.Series(np.nan, rows.index)) for end in ("low", "high"))
    form = ".3f" if measure == "reward" else ".1%"
    said = [
        f"{mark.name}<br>step {step}: {mean:{form}}"
        + ("" if np.isnan(least) else f" ({least:{form}} to {most:{form}})")
        for step, mean, least, most in zip(rows["step"], rows[measure], low, high, strict=True)
    ]
    return rows.assign(mean=rows[measure], low=low, high=high, at=np.arange(len(rows)), hover=said)


def pass_at_k(curves: pd.DataFrame, caption: str = "", style: Style = "screen") -> go.Figure:
    """The share of problems with at least one correct response in k: label, k, mean, low, high (Fig. 6)."""
    figure = go.Figure()
    for number, (label, rows) in enumerate(curves.groupby("label", sort=False)):
        colour, symbol = theme.CURVES[number % len(theme.CURVES)]
        rows = rows.sort_values("k")
        said = [f"k = {k}: {mean:.1%}" for k, mean in zip(rows["k"], rows["mean"], strict=True)]
        rows = rows.assign(at=np.arange(len(rows)), hover=said)
        theme.line(figure, rows, Mark(theme.inert(theme.short(str(label))), colour, symbol), x="k")
    drawn = sorted({int(k) for k in curves["k"]})
    figure.update_xaxes(type="log", title={"text": "k"}, tickvals=drawn, ticktext=[str(k) for k in drawn])
    figure.update_yaxes(title={"text": "Pass@k"}, tickformat=".0%")
    return theme.layout(figure, "Pass@k", caption, style)
