"""The mean difference between two scans of the same tokens, layer by layer, with intervals over rollouts."""

import numpy as np
import pandas as pd

from internal_policy.errors import InputError, counted, joined
from internal_policy.look import comparison, findings, jackknife, legend, pairs, statistics, view
from internal_policy.look.statistics import Average
from internal_policy.look.view import AVERAGED, View
from internal_policy.measure.sites import INPUT_OF, WITH_FINAL
from internal_policy.scans import positions

MEASURES = ("entropy", "change", *AVERAGED[1:])
"""Measures that can be subtracted; `change` is the entropy change of attention, FFN and layer."""
IN_WORDS = ("attn_out", "mlp_out", "resid_post", "final")
"""Sites that `in_words` names."""


def by_layer(a: View, b: View, measure: str = "entropy", average: Average = "tokens") -> pd.DataFrame:
    """B minus A of a measure at each layer and site, over the rollouts whose prompts and responses are the same.

    A and B are scans, or two readouts of one scan. Columns: layer, site, a and b (means), difference (b minus a), low
    and high (the 95% interval of this layer by itself), low_all and high_all (95% for all layers of the site at once).
    All are in the measure's unit. Rollouts are compared in pairs, and the `jackknife` intervals are over them; they are
    NaN for a single one. The measure `change` is the entropy at the output of attention (attn_out), FFN (mlp_out)
    or layer (resid_post) minus that at its input. Raises InputError if the scans have no rollout in common, were
    measured at other positions, have another number of layers, or lack the measure.
    """
    view.check_measure(measure, MEASURES)
    if reason := obstacle(a, b, measure):
        raise InputError(reason)
    found = partners(a, b)
    layers = view.layers(a, measure)
    left, right = values(layers, measure), values(view.layers(b, measure), measure)
    common = [column for column in left if column in right]
    if not common:
        raise view.absent(b if len(left.columns) else a, measure)
    left, right = left.loc[[*found], common], right.loc[[*found.values()], common].set_axis([*found])
    weights = statistics.weights_of(left, layers, average)
    changed = (right - left).to_numpy()
    frame = left.columns.to_frame(index=False)
    frame["a"], frame["b"] = (jackknife.interval(side.to_numpy(), weights)[0] for side in (left, right))
    frame["difference"], frame["low"], frame["high"] = jackknife.interval(changed, weights)
    frame["low_all"] = frame["high_all"] = np.nan
    for _, rows in frame.groupby("site"):
        _, low, high = jackknife.interval(changed[:, rows.index], weights, of=len(rows))
        frame.loc[rows.index, "low_all"], frame.loc[rows.index, "high_all"] = low, high
    order = frame["site"].map([*WITH_FINAL].index)
    return frame.assign(order=order).sort_values(["layer", "order"], ignore_index=True).drop(columns="order")


def values(layers: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A measure where it is shown: one row per rollout, one column per layer and site.

    `layers` is a scan's table of one readout. The measure `change` is the entropy change at the output.
    """
    found = statistics.by_rollout(layers, view.MADE_OF[measure] if measure == "change" else measure)
    shown = view.SHOWN_AT.get(measure, WITH_FINAL)
    if measure != "change":
        return found[[(layer, site) for layer, site in found.columns.tolist() if site in shown]]
    pairs_of = {(layer, site): (layer, INPUT_OF[site]) for layer, site in found.columns.tolist() if site in shown}
    outputs = [after for after, before in pairs_of.items() if before in found]
    inputs = found[[pairs_of[after] for after in outputs]]
    return found[outputs] - inputs.set_axis(found[outputs].columns, axis=1)


def obstacle(a: View, b: View, measure: str = "entropy") -> str | None:
    """Why two scans can't be subtracted, in a sentence with the remedy; None if they can be.

    Raises InputError for scans that can't be compared at all (`comparison.comparable`).
    """
    mine, other = comparison.comparable([a, b], view.MADE_OF.get(measure, measure))
    if mine["n_layers"] != other["n_layers"]:
        return (
            f"The scans have {mine['n_layers']} and {other['n_layers']} layers, so they can't be subtracted. Draw them "
            "at relative depth with `internal-policy plot SCAN compare --against SCAN`."
        )
    if positions.of_record(mine) != positions.of_record(other):
        return "The scans measured different positions. Scan again with the same --positions and --every."
    if not partners(a, b):
        return (
            "The scans have no rollout with the same tokens, so they can't be subtracted. Scan both models with the "
            "same --rollouts or --text."
        )
    return None


def partners(a: View, b: View) -> dict[int, int]:
    """Rollout of A -> the rollout of B with the same prompt and response, each used once."""
    mine, others = pairs.texts(a), pairs.texts(b)
    free: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for rollout, tokens in others.items():
        free.setdefault(tokens, []).append(rollout)
    return {rollout: free[tokens].pop(0) for rollout, tokens in mine.items() if free.get(tokens)}


def is_significant(differences: pd.DataFrame) -> pd.Series:
    """Whether a difference of `by_layer` is above or below 0 with 95% confidence for all layers of its site at once."""
    return (differences["low_all"] > 0) | (differences["high_all"] < 0)


def in_words(differences: pd.DataFrame, measure: str = "entropy", where: str = "in B") -> str:
    """Which layers differ significantly, and in which direction, as sentences. `differences` is `by_layer`.

    `where` says what is compared with what.
    """
    name = legend.MEASURES[measure][0]
    known = differences[differences["site"].isin(IN_WORDS)].dropna(subset="difference")
    broken = int(differences["difference"].isna().sum())
    nan = f" {counted(broken, 'difference')} {'is' if broken == 1 else 'are'} NaN." if broken else ""
    if not len(known):
        return nan.strip()
    if (known["difference"] == 0).all():
        return f"{name} is the same {'in A and B' if where == 'in B' else where} at every layer.{nan}"
    if known["low"].isna().all():
        return f"The scans have a single rollout in common, so no difference can be tested.{nan}"
    if not is_significant(known).any():
        return f"{name}: no layer differs significantly (95% confidence for all layers at once).{nan}"
    sites = [site for site in IN_WORDS if site in {*known["site"]}]
    said = [_site_in_words(site, known[known["site"] == site], measure) for site in sites]
    return f"{name} {where}, with 95% confidence for all layers at once: {'; '.join(said)}.{nan}"


def _site_in_words(site: str, rows: pd.DataFrame, measure: str) -> str:
    output = "layer" if measure == "change" else legend.SITES["resid_post"].name
    name = {"resid_post": output, "final": "the model's own policy"}.get(site) or legend.SITES[site].name
    if (rows["difference"] == 0).all():
        return f"{name} is the same"
    said = []
    for direction, chosen in (("higher", rows["low_all"] > 0), ("lower", rows["high_all"] < 0)):
        if chosen.any():
            where = "" if site == "final" else f" in {findings.layers_in_words(rows.loc[chosen, 'layer'].tolist())}"
            said.append(direction + where)
    return f"{name} is {joined(said)}" if said else f"{name} isn't shown to differ"
