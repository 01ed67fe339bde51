"""Name the stage of each layer, and the layer that BuPO trains first."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pandas as pd

from internal_policy.errors import InputError
from internal_policy.look.bootstrap import FEWEST
from internal_policy.look.statistics import Part

STAGES = ("exploration", "integration", "convergence")
"""Names for an interval of the FFN's entropy change above, around and below 0."""


def stages(changes: pd.DataFrame, part: Part = "total") -> pd.DataFrame:
    """The stage of each layer, by the FFN's entropy change: layer, stage.

    Exploration if its interval is above 0, convergence if it is below, and integration if it contains 0. The 95%
    intervals hold for all layers at once, because with separate intervals about one of 36 flat layers would seem to
    rise. The paper gives no threshold for "about 0". Fewer than 4 rollouts give no such intervals and no stages.
    """
    mlp = _ffn(changes, part).dropna(subset=["low_all", "high_all"])
    stage = np.where(mlp["low_all"] > 0, STAGES[0], np.where(mlp["high_all"] < 0, STAGES[2], STAGES[1]))
    return pd.DataFrame({"layer": mlp["layer"].to_numpy(), "stage": stage}).sort_values("layer", ignore_index=True)


def _ffn(changes: pd.DataFrame, part: Part) -> pd.DataFrame:
    if part not in get_args(Part):
        raise InputError(f"There is no part '{part}' of an entropy change. Choose one of {', '.join(get_args(Part))}.")
    return changes[(changes["change"] == "mlp") & (changes["part"] == part)]


def target(stages: pd.DataFrame) -> int | None:
    """The layer that BuPO would train first, from 0: the last exploration layer, or None if there is none."""
    explored = stages.loc[stages["stage"] == STAGES[0], "layer"]
    return int(explored.max()) if len(explored) else None


def runner_up(changes: pd.DataFrame, part: Part = "total") -> int | None:
    """The layer to consider besides the target: the last other one whose own interval is above 0, or None.

    It is later than the target if a later layer rises, but not significantly among so many; otherwise it is earlier.
    """
    mlp, chosen = _ffn(changes, part), target(stages(changes, part))
    rising = mlp.loc[(mlp["low"] > 0) & (mlp["layer"] != chosen), "layer"]
    return int(rising.max()) if len(rising) else None


def spans(stages: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Runs of layers in the same stage: its name, first layer and last layer, from 0."""
    found: list[tuple[str, int, int]] = []
    for layer, stage in stages.itertuples(index=False):
        if found and found[-1][0] == stage and found[-1][2] == layer - 1:
            found[-1] = (stage, found[-1][1], int(layer))
        else:
            found.append((stage, int(layer), int(layer)))
    return found


def targets(changes: pd.DataFrame) -> pd.DataFrame:
    """Stages and target layer by the total change and by each of its parts, one row per part.

    Columns: part, target, runner_up (layers from 0), spans, and mean, low and high of the target's change (nats; the
    interval holds for all layers at once).
    """
    parts: list[Part] = [part for part in get_args(Part) if (changes["part"] == part).any()]
    found = [stages(changes, part) for part in parts]
    frame = pd.DataFrame(
        {
            "part": parts,
            "target": [target(s) for s in found],
            "runner_up": [runner_up(changes, part) for part in parts],
            "spans": [spans(s) for s in found],
        }
    ).astype({"target": "Int64", "runner_up": "Int64"})
    ends = changes[changes["change"] == "mlp"].set_index(["part", "layer"])[["mean", "low_all", "high_all"]]
    ends.columns = ["mean", "low", "high"]
    return frame.join(ends, on=["part", "target"])


def suggestion(changes: pd.DataFrame) -> dict[str, Any]:
    """The row of `targets` for the total change, in values that JSON can hold; None for missing ones."""
    (row,) = targets(changes).query("part == 'total'").to_dict("records")
    return {str(name): value if isinstance(value, list) or pd.notna(value) else None for name, value in row.items()}


def in_words(found: Mapping[str, Any]) -> str:
    """A `suggestion` as a sentence: which layer BuPO trains first, by which rule, and the runner-up."""
    if not found["spans"]:
        return (
            f"No target layer: choosing one needs at least {FEWEST} rollouts, and the entropy before and after the FFN."
        )
    if found["target"] is None:
        other = "" if found["runner_up"] is None else f"; layer {found['runner_up']} comes closest"
        return f"No layer's FFN raises entropy significantly, so there is no target layer{other}."
    interval = f"{found['mean']:+.3g} nats, {found['low']:.3g} to {found['high']:.3g}"
    other = "there is no runner-up" if found["runner_up"] is None else f"the runner-up is layer {found['runner_up']}"
    return (
        f"Target layer: {found['target']}, the last whose FFN raises entropy significantly ({interval}, with 95% "
        f"confidence for all layers at once); {other}."
    )
