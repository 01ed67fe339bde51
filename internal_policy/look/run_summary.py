"""A training run for people: its schedule in a sentence, its first and last steps, and its layers before and after."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from internal_policy.errors import counted
from internal_policy.look import legend, runs
from internal_policy.look.runs import DYNAMICS, EXAMS, PASS_AT_K, RunTables

MEASURES = {
    "reward": "reward",
    "entropy": "entropy of the whole policy (nats)",
    "internal_entropy": "entropy of the internal policy (nats)",
    "perplexity": "perplexity",
    "length": "tokens per response",
    "cut": "share of responses cut",
    "clip_fraction": "share of tokens clipped",
    "groups_without_spread": "share of prompts without spread",
    "rows_trained": "share of responses trained on",
    "resampled": "prompts drawn again",
}
"""Column of metrics.parquet -> what it is called in the table of first and last steps."""
METHODS = {"bupo": "BuPO", "grpo": "GRPO", "dr-grpo": "Dr. GRPO", "rloo": "RLOO", "reinforce++": "REINFORCE++"}
"""Training method -> its title."""
STEADY, SMALL = 0.005, 0.01
"""A smaller change of the reward, and of an entropy in nats, is called none."""
SHOWN = 11
"""Exams in a table, besides the best one."""


class Phase(NamedTuple):
    """Steps that trained one policy."""

    target: str
    """The hook point whose policy was trained; final is the whole policy."""
    first: int
    """Its first step."""
    last: int
    """Its last step."""


def schedule(metrics: pd.DataFrame) -> list[Phase]:
    """Which policy was trained at which steps."""
    rows = metrics[["target", "step"]].sort_values("step").to_dict("records")
    phases = []
    for target, steps in groupby(rows, key=lambda row: str(row["target"])):
        numbers = [int(row["step"]) for row in steps]
        phases.append(Phase(target, numbers[0], numbers[-1]))
    return phases


def method(metrics: pd.DataFrame) -> str:
    """The training method, a key of METHODS; in runs that don't say it, bupo if an internal policy was trained."""
    known = metrics["method"].iloc[0] if "method" in metrics else None
    return known if known in METHODS else "bupo" if (metrics["phase"] == "internal").any() else "grpo"


def sentences(metrics: pd.DataFrame, frame: pd.DataFrame | None, exams: pd.DataFrame | None = None) -> list[str]:
    """The schedule, the reward, the exams, and the layer whose output changed most.

    `frame` is the table of layers, and `exams` that of exams; None if there is none.
    """
    said = [f"{METHODS[method(metrics)]}: {_schedule_in_words(schedule(metrics))}."]
    for row in first_and_last(metrics).to_dict("records"):
        if row["measure"] == "reward" and row["first_from"] < row["last_from"]:
            said.append(_reward_in_words(row))
    if exams is not None:
        said.append(_exams_in_words(exams))
    if frame is not None and (layer := _most_changed(frame)):
        said.append(layer)
    return said


def called(measure: str) -> str:
    """What a measure is called in the table of first and last steps."""
    return MEASURES.get(measure) or f"reward {measure.removeprefix(runs.REWARD)}"


def _reward_in_words(row: Mapping[Any, Any]) -> str:
    """How the reward changed, from its row of `first_and_last`."""
    before, after = row["first_mean"], row["last_mean"]
    verb = "went" if abs(after - before) < STEADY else "rose" if after > before else "fell"
    first, last = (_steps(row[f"{end}_from"], row[f"{end}_to"]) for end in ("first", "last"))
    return f"The mean reward {verb} from {before:.2f} ({first}) to {after:.2f} ({last})."


def _exams_in_words(exams: pd.DataFrame) -> str:
    """How Avg@K over all problems changed from the first exam to the last."""
    rows = runs.overall(exams).to_dict("records")
    first, last = rows[0], rows[-1]
    number = f" of {counted(int(last['number']), 'problem')}" if "number" in last else ""
    exam = f"Avg@{last['samples']} on the exam{number}"
    if len(rows) == 1:
        return f"{exam} is {first['avg_at_k']:.1%} (step {first['step']})."
    before, after = first["avg_at_k"], last["avg_at_k"]
    verb = "went" if abs(after - before) < STEADY else "rose" if after > before else "fell"
    said = f"{exam} {verb} from {before:.1%} (step {first['step']}) to {after:.1%} (step {last['step']})"
    if pd.isna(last.get("change_low")):
        return f"{said}."
    low, high = (f"{100 * last[f'change_{end}']:+.1f}" for end in ("low", "high"))
    return f"{said}: {100 * last['change']:+.1f} points (95% {low} to {high}, paired by problem)."


def some_exams(exams: pd.DataFrame) -> pd.DataFrame:
    """The rows of at most 12 exams spread over the run, the first, the best and the last among them."""
    rows = runs.overall(exams)
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), SHOWN)).round().astype(int)
    return exams[exams["step"].isin({*rows["step"].iloc[chosen], runs.best(exams)["step"]})]


def _schedule_in_words(phases: list[Phase]) -> str:
    """Such as `steps 1 to 8 train 6.resid_post, steps 9 to 50 the whole policy`."""
    parts = []
    for number, phase in enumerate(phases):
        verb = "" if number else " trains" if phase.first == phase.last else " train"
        target = "the whole policy" if phase.target == "final" else phase.target
        parts.append(f"{_steps(phase.first, phase.last)}{verb} {target}")
    return ", ".join(parts)


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def _most_changed(frame: pd.DataFrame) -> str | None:
    """The layer whose output changed its entropy most between the first scan and the last; None if unknown."""
    first, last = int(frame["step"].min()), int(frame["step"].max())
    if first == last or "entropy" not in frame:
        return None
    outputs = frame[frame["site"] == "resid_post"].pivot(index="layer", columns="step", values="entropy")
    changed = (outputs[last] - outputs[first]).dropna() if len(outputs) else pd.Series(dtype=float)
    if not len(changed):
        return None
    layer = int(changed.index[int(changed.abs().argmax())])
    if abs(changed[layer]) < SMALL:
        return f"From step {first} to step {last} no layer's output changed its entropy by {SMALL} nats or more."
    return (
        f"From step {first} to step {last} the entropy of the layers' outputs changed most at layer {layer}: "
        f"{outputs.loc[layer, first]:.3f} to {outputs.loc[layer, last]:.3f} nats."
    )


def first_and_last(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means over the first and the last tenth of the steps with a value, one row a measure.

    Columns: measure, first_from, first_to (steps), first_mean, last_from, last_to and last_mean.
    """
    rows = []
    for measure in [*filter(metrics.__contains__, MEASURES), *runs.rewards(metrics)]:
        measured = metrics.dropna(subset=measure).sort_values("step")
        if not len(measured):
            continue
        size = max(1, len(measured) // 10)
        row: dict[str, object] = {"measure": measure}
        for end, part in (("first", measured.head(size)), ("last", measured.tail(size))):
            steps = {"from": int(part["step"].min()), "to": int(part["step"].max())}
            row |= {f"{end}_{name}": value for name, value in (*steps.items(), ("mean", float(part[measure].mean())))}
        rows.append(row)
    return pd.DataFrame(rows)


def layers(metrics: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Entropies of the layers in the first scan and the last, one row a layer; the last row is the model's own policy.

    Columns are pairs of a quantity and a step: the entropy of the layer's output, the FFN's entropy change, and the KL
    from the layer that was trained first or watched. All in nats; what wasn't measured is left out.
    """
    steps = sorted({int(frame["step"].min()), int(frame["step"].max())})
    trained = runs.trained(metrics, frame)
    output = legend.SITES["resid_post"].name
    wanted = [
        (output, "entropy", ("resid_post", "final")),
        (f"Δ {legend.CHANGES['mlp'].name}", "change", ("mlp_out",)),
        (f"KL from layer {trained}", "kl", ("resid_post", "final")),
    ]
    columns = {}
    for called, measure, sites in [one for one in wanted if one[1] in frame]:
        rows = frame[frame["site"].isin(sites)]
        for step in steps:
            values = rows[rows["step"] == step].set_index("layer")[measure]
            if values.notna().any():
                columns[called, f"step {step}"] = values
    return pd.DataFrame(columns).rename_axis(index="layer")


def evaluations(run: RunTables) -> pd.DataFrame | None:
    """The run's Pass@k; None if it has none. Raises InputError if the file is damaged."""
    return run.pass_at_k() if (run.folder / PASS_AT_K).is_file() else None


def exams(run: RunTables) -> pd.DataFrame | None:
    """The run's exams; None if it had none. Raises InputError if the file is damaged."""
    return run.exams() if (run.folder / EXAMS).is_file() else None


def dynamics(run: RunTables) -> pd.DataFrame | None:
    """The run's table of layers; None if it wasn't scanned. Raises InputError if the file is damaged."""
    return run.dynamics() if (run.folder / DYNAMICS).is_file() else None
