"""What each control of `check` shows of the entropies of a scan."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from internal_policy.errors import InputError, counted
from internal_policy.look import bootstrap, tokens, view
from internal_policy.look.control import FIRST, MASSIVE, Control
from internal_policy.look.view import View
from internal_policy.measure.sites import CHANGES
from internal_policy.scans import store


class Evidence(NamedTuple):
    """What a control lets the claims see, with intervals for all layers at once."""

    path: pd.DataFrame
    """How far the entropy of each layer's output is from that of the first: layer, mean, low_all, high_all (nats)."""
    changes: pd.DataFrame
    """Entropy changes: layer, change (layer, attn, mlp), mean, low_all, high_all (nats)."""
    note: str = ""
    """How many positions were left out, or at how many layers the entropy differs from a null."""


def of(one: View, control: Control) -> Evidence:
    """What a control shows of a view. Raises InputError with the reason if the scan can't tell."""
    if control.readout is not None:
        if control.readout not in store.record(one.source)["selection"]["readouts"]:
            raise InputError(f"the readout {control.readout} wasn't measured")
        one = replace(one, readout=control.readout)
    if control.without:
        layers, note = remaining(one, control.without)
    else:
        layers, note = view.layers(one), ""
    seen = adapted(layers, control)
    if control.minus:
        note = against(seen)
    return Evidence(path(seen), changes(seen), note)


class Wide(NamedTuple):
    """What a control takes for the entropies: one row per rollout, one column per site and layer, in nats."""

    before: pd.DataFrame
    """At the inputs of layers and modules."""
    after: pd.DataFrame
    """At their outputs, with the scale of the inputs if the control scales them."""
    tokens: np.ndarray
    """How many tokens each rollout has, which is its weight."""
    scaled: bool
    """Whether the control scales the outputs."""


def adapted(layers: pd.DataFrame, control: Control) -> Wide:
    """The entropies of a table `layers` as the control takes them. Raises InputError if a measure is missing."""
    for name in filter(None, (control.entropy, control.minus, control.scaled)):
        if name not in layers:
            raise InputError(f"{name} wasn't measured")
        if not layers[name].notna().any():
            raise InputError(f"{name} has no values with this readout")
    rows = layers[layers["site"] != "final"]
    rows = rows.assign(before=rows[control.entropy] - (rows[control.minus] if control.minus else 0))
    rows["after"] = rows[control.scaled] if control.scaled else rows["before"]
    before, after = (
        rows.pivot(index="rollout", columns=["site", "layer"], values=name).sort_index(axis=1)
        for name in ("before", "after")
    )
    tokens = rows.groupby("rollout")["tokens"].first().reindex(before.index).to_numpy(dtype=float)
    return Wide(before, after, tokens, bool(control.scaled))


def _at(wide: pd.DataFrame, site: str) -> pd.DataFrame:
    """The columns of a site by layer; none if it wasn't measured."""
    return wide[site] if site in wide.columns.levels[0] else pd.DataFrame(index=wide.index)  # pyright: ignore


def path(seen: Wide) -> pd.DataFrame:
    """How far the entropy of each layer's output is from that of the first measured layer's.

    If outputs are scaled it is the sum of the layers' changes after the first: the part of the difference that
    directions make. Columns: layer, mean, low_all, high_all, in nats, the interval for all layers at once. It has no
    rows for a single layer, or if scaled changes between the layers are missing.
    """
    outputs, inputs = _at(seen.after, "resid_post"), _at(seen.before, "resid_pre")
    layers = outputs.columns
    if not seen.scaled:
        along = outputs.sub(outputs.iloc[:, 0], axis=0) if len(layers) else outputs
    elif (np.diff(layers) == 1).all():
        along = (outputs - inputs.reindex(columns=layers)).iloc[:, 1:].cumsum(axis=1, skipna=False)
    else:
        along = outputs[[]]
    return _at_once(along[[layer for layer in along if layer != layers[0]]], seen.tokens)


def changes(seen: Wide) -> pd.DataFrame:
    """Entropy changes in nats: layer, mean, low_all, high_all (for all layers of a change at once), change."""
    frames = []
    for change, (before, after) in CHANGES.items():
        inputs, outputs = _at(seen.before, before), _at(seen.after, after)
        both = outputs.columns.intersection(inputs.columns)
        frames.append(_at_once(outputs[both] - inputs[both], seen.tokens).assign(change=change))
    return pd.concat(frames, ignore_index=True)


def against(seen: Wide) -> str:
    """At how many layers the entropy of the output differs from the null's, which the control subtracts."""
    signs = sign(_at_once(_at(seen.after, "resid_post"), seen.tokens))
    above, below = (int((signs == side).sum()) for side in (1, -1))
    return f"the entropy is lower at {below} and higher at {above} of {counted(len(signs), 'layer output')}"


def _at_once(values: pd.DataFrame, tokens: np.ndarray) -> pd.DataFrame:
    """The mean and interval of each layer, a column of `values`: layer, mean, low_all, high_all. Rows are rollouts."""
    numbers = values.to_numpy(dtype=float)
    low, high = bootstrap.simultaneous(numbers, tokens)
    mean = (numbers * tokens[:, None]).sum(0) / tokens.sum()
    return pd.DataFrame({"layer": values.columns.to_numpy(dtype=int), "mean": mean, "low_all": low, "high_all": high})


def sign(found: pd.DataFrame) -> np.ndarray:
    """1, -1 or 0: above, below or around 0 with 95% confidence for all layers at once; NaN if that can't be told."""
    low, high = found["low_all"].to_numpy(float), found["high_all"].to_numpy(float)
    return np.where(np.isfinite(low) & np.isfinite(high), (low > 0) * 1.0 - (high < 0), np.nan)


def remaining(one: View, without: str) -> tuple[pd.DataFrame, str]:
    """The table `layers` of a view without some positions, and how many those are. Raises InputError if none remain."""
    every = positions(one, norms=without == "massive")
    out = LEAVES_OUT[without](every)
    note = f"{out.sum():,} of {counted(len(every), 'position')} left out"
    if not out.any():
        return view.layers(one, "entropy"), note
    if out.all():
        raise InputError(f"all {counted(len(every), 'position')} would be left out")
    left = pd.MultiIndex.from_frame(every.loc[out, ["rollout", "position"]])
    record, measured = store.record(one.source), store.columns(one.source, "policies")
    sites = dict.fromkeys(site for pair in CHANGES.values() for site in pair)
    names = [name for site in sites if (name := f"{site}.entropy") in measured]
    kept = every.loc[~out, "rollout"].unique()
    frames = []
    for piece in store.pieces(one.source, "policies", ["rollout", "position", "layer", *names], view.within(one)):
        at = pd.MultiIndex.from_arrays([piece["rollout"].to_numpy(), piece["position"].to_numpy()])
        rows = piece.filter(~at.isin(left))
        if np.isin(rows["rollout"].to_numpy(), kept).any():
            frames.append(view.averaged(record, rows, kept))
    return pd.concat(frames, ignore_index=True), note


def positions(one: View, *, norms: bool = False) -> pd.DataFrame:
    """The positions of a view: rollout, position, read_at (the token of prompt and response, from 0), and `norms`.

    The policy that predicts position t of a response was read one token earlier. With `norms`, one more column per
    layer, named by its number, has the norms of its outputs. Raises InputError if those weren't measured.
    """
    if norms and "resid_post.norm" not in store.columns(one.source, "policies"):
        raise InputError("the norms of layer outputs weren't measured")
    lengths = view.rollouts(one, ["prompt_ids"]).set_index("rollout")["prompt_ids"].map(len)
    frames = []
    for part in tokens.read(one, ["position", *(["resid_post.norm"] if norms else [])]):
        at = part.values[0][:, 0].astype(int)
        frame = pd.DataFrame({"rollout": part.rollout, "position": at})
        frame["read_at"] = lengths.loc[part.rollout].to_numpy() + at - 1
        if norms:
            frame = frame.join(pd.DataFrame(part.values[1][:, :-1], columns=part.layers[:-1]))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def among_first(positions: pd.DataFrame) -> np.ndarray:
    """Whether each position was read at one of the first tokens of its sequence."""
    return (positions["read_at"] < FIRST).to_numpy()


def massive(positions: pd.DataFrame) -> np.ndarray:
    """Whether the norm of a position in any layer is far above that layer's median."""
    norms = positions.drop(columns=["rollout", "position", "read_at"])
    return (norms > MASSIVE * norms.median()).any(axis=1).to_numpy()


LEAVES_OUT: Mapping[str, Callable[[pd.DataFrame], np.ndarray]] = {"first": among_first, "massive": massive}
"""Name -> which of the `positions` it leaves out."""
