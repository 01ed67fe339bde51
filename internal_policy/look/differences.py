"""The mean difference between two scans of the same tokens, layer by layer, with intervals over rollouts."""

from collections.abc import Hashable

import pandas as pd

from internal_policy.errors import InputError
from internal_policy.look import comparison, pairs, statistics, view
from internal_policy.look.statistics import Average
from internal_policy.look.view import View
from internal_policy.measure.sites import WITH_FINAL


def by_layer(a: View, b: View, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
    """B minus A of a measure at each layer and site, over the rollouts whose prompts and responses are the same.

    Columns: layer, site, a and b (means), difference (b minus a), and low and high, the ends of its 95% bootstrap
    interval over rollouts, which are drawn in pairs (NaN for a single one). All are in the measure's unit. Raises
    InputError if the scans have no rollout in common, another number of layers, or lack the measure.
    """
    mine, other = comparison.comparable([a, b], "rank" if measure == "top1" else measure)
    if mine["n_layers"] != other["n_layers"]:
        raise InputError(
            f"The scans have {mine['n_layers']} and {other['n_layers']} layers, so they can't be subtracted. Draw them "
            "at relative depth with `internal-policy plot SCAN compare --against SCAN`."
        )
    found = partners(a, b)
    if not found:
        raise InputError(
            "The scans have no rollout with the same tokens, so they can't be subtracted. Scan both models with the "
            "same --rollouts or --text."
        )
    left, right = view.layers(a, measure), view.layers(b, measure)
    left = left[left["rollout"].isin(list(found))]
    right = right.merge(pd.DataFrame({"rollout": list(found.values()), "pair": list(found)}), on="rollout")
    keys: list[Hashable] = ["rollout", "layer", "site"]
    right = right.drop(columns="rollout").rename(columns={"pair": "rollout"})
    both = left[[*keys, "tokens", measure]].merge(right[[*keys, measure]], on=keys, suffixes=("", "_b"))
    both = both[both["site"].isin(view.SHOWN_AT.get(measure, WITH_FINAL))]
    if not len(both):
        raise view.absent(a, measure)
    changed = both.assign(**{measure: both[f"{measure}_b"] - both[measure]})
    means = statistics.means(changed, measure, average).rename(columns={"mean": "difference"})
    for name, values in (("a", both), ("b", both.assign(**{measure: both[f"{measure}_b"]}))):
        own = statistics.means(values, measure, average).rename(columns={"mean": name})
        means = means.merge(own[["layer", "site", name]], on=["layer", "site"])
    return means[["layer", "site", "a", "b", "difference", "low", "high"]]


def partners(a: View, b: View) -> dict[int, int]:
    """Rollout of A -> the rollout of B with the same prompt and response, each used once."""
    mine, others = pairs.texts(a), pairs.texts(b)
    free: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for rollout, tokens in others.items():
        free.setdefault(tokens, []).append(rollout)
    return {rollout: free[tokens].pop(0) for rollout, tokens in mine.items() if free.get(tokens)}
