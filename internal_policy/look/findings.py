"""What a scan shows, in plain sentences, and the commands to run next."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from internal_policy import bundle
from internal_policy.errors import counted, joined
from internal_policy.look import statistics, targets, view
from internal_policy.look.view import View
from internal_policy.measure.sites import CHANGES
from internal_policy.scans import address, repeat, store

FLAT = 0.05
"""Changes of entropy along the layers below this, in nats, don't count."""
CERTAIN = 0.5
"""A policy with less entropy, in nats, is called almost certain."""
ENOUGH = 8
"""With fewer rollouts, intervals that hold for all layers at once are usually too wide to tell a stage."""
FEW = 16
"""Fewer rollouts may be too few to tell whether a layer's FFN raises the entropy; training scans 32."""
SHORTEST = 4
"""Fewest digits of a scan's digest in a command."""
EFFECTS = {"exploration": "raise", "convergence": "lower"}
"""Stage -> what the FFNs of its layers do to the entropy."""


@dataclass(frozen=True)
class Findings:
    """What a view of a scan shows, and where to look next."""

    sentences: tuple[str, ...]
    """Most important first: saturation, where the entropy falls, what the FFNs do, the layer that BuPO trains."""
    commands: tuple[str, ...]
    """Up to two commands, ready to copy; none for a scan in memory."""


def findings(one: View) -> Findings:
    """What a view of a scan shows. What wasn't measured is left out. Raises InputError for a broken scan."""
    layers = view.layers(one, "entropy")
    means = statistics.by_layer(layers, one.readout) if "entropy" in layers else pd.DataFrame()
    raw = saturated(one, "Read them through the final norm: --readout norm.")
    said = [raw, along_the_layers(means)]
    changes = statistics.changes(layers[layers["site"].isin(CHANGES["mlp"])])
    if len(changes):
        said += about_training(one, changes)
    commands = next_commands(one, raw != "") if isinstance(one.source, Path) else []
    return Findings(tuple(sentence for sentence in said if sentence), tuple(commands))


def verdict(one: View) -> tuple[str, ...]:
    """What a view shows in up to three sentences: where the entropy falls, the target layer, whether to trust raw.

    The last comes first if the view is raw and saturated. What wasn't measured is left out. Raises InputError for a
    broken scan.
    """
    layers = view.layers(one, "entropy")
    means = statistics.by_layer(layers, one.readout) if "entropy" in layers else pd.DataFrame()
    changes = statistics.changes(layers[layers["site"].isin(CHANGES["mlp"])])
    said = [along_the_layers(means), target_in_words(one, changes) if len(changes) else ""]
    said.insert(0 if saturated(one) else 2, trust(one))
    return tuple(sentence for sentence in said if sentence)


def target_in_words(one: View, changes: pd.DataFrame) -> str:
    """The layer that BuPO trains first and its runner-up, or why there is none; empty without finite numbers."""
    suggestion, rollouts = targets.suggestion(changes), view.about(one).rollouts
    if rollouts < ENOUGH and suggestion["target"] is None:
        return too_few(rollouts, None)
    return targets.in_words(suggestion) if suggestion["spans"] else ""


def along_the_layers(means: pd.DataFrame) -> str | None:
    """Where the entropy of the residual stream falls most; None if it wasn't measured or isn't finite.

    `means` is `statistics.by_layer`. It is the shortest stretch with half of the largest fall. If the largest rise is
    larger, the sentence begins with where entropy rises most.
    """
    at = _stream(means)
    if not len(at) or not np.isfinite(at).all():
        return None
    own = means["final"].dropna().tolist() if "final" in means else []
    end = f"; the model's own policy has {_nats(own[0])}" if own else ""
    first, last = int(at.index[0]), int(at.index[-1])
    if len(at) == 1:
        where = f"after layer {first - 1}" if first else "before layer 0"
        return f"Entropy {where} is {_nats(at[first])} nats{end}."
    if last - first == 1:
        return f"Entropy goes from {_nats(at[first])} to {_nats(at[last])} nats in layer {first}{end}."
    fall = (at.cummax() - at).max()
    if fall >= FLAT:
        rises = f"rises most in {_stretch(at, _steepest(-at))}, and " if (at - at.cummin()).max() > fall else ""
        return f"Entropy {rises}falls most in {_stretch(at, _steepest(at))}{end}."
    if at.max() - at.min() < FLAT:
        return f"Entropy stays between {_nats(at.min())} and {_nats(at.max())} nats in all measured layers{end}."
    return f"Entropy never falls along the layers: it rises from {_nats(at.min())} to {_nats(at.max())} nats{end}."


def _stream(means: pd.DataFrame) -> pd.Series:
    """Entropy of the residual stream by the number of layers that it has passed."""
    found: dict[int, float] = {}
    for site, passed in (("resid_pre", 0), ("resid_post", 1)):
        if site in means:
            measured = means.drop(index=means.index[means["final"].notna()]) if "final" in means else means
            found |= {int(str(layer)) + passed: float(value) for layer, value in measured[site].items()}
    return pd.Series(found, dtype=float).sort_index()


def _stretch(at: pd.Series, ends: tuple[int, int]) -> str:
    """The layers between two ends with the entropy at both, as part of a sentence."""
    start, stop = ends
    return f"{layers_in_words(range(start, stop))}: from {_nats(at[start])} to {_nats(at[stop])} nats"


def _steepest(at: pd.Series) -> tuple[int, int]:
    """Ends of the shortest stretch with half of the largest fall; of several the one that falls most."""
    passed, values = at.index.to_numpy(), at.to_numpy()
    falls = np.triu(values[:, None] - values[None, :], 1)
    enough = np.argwhere(np.triu(falls >= falls.max() / 2, 1))
    start, stop = min(enough.tolist(), key=lambda ends: (passed[ends[1]] - passed[ends[0]], -falls[tuple(ends)]))
    return int(passed[start]), int(passed[stop])


def saturated(one: View, remedy: str = "") -> str:
    """That raw hidden states are far from the model's own policy, and what to do; empty if they aren't.

    A layer counts if its policy is further from the model's own than a uniform one is: mean KL(final || layer) above
    ln(vocabulary), the largest that a uniform policy can have. All rollouts and positions of the scan count,
    whatever part of it the view shows. `remedy` is the last sentence, by default `on_screen`.
    """
    if one.readout != "raw":
        return ""
    rows = _outputs(View(one.source))
    if "kl" not in rows or not rows["kl"].notna().any():
        return ""
    kl, uniform = _by_layer(rows, "kl"), math.log(store.record(one.source)["d_vocab"])
    wrong = kl[kl > uniform]
    if not len(wrong) or len(wrong) < len(kl) / 2:
        return ""
    certain = int((_by_layer(rows, "entropy") < CERTAIN).sum()) if "entropy" in rows else 0
    of, yet = f"of {counted(len(kl), 'layer')}", ""
    if certain:
        yet = f"{certain} {of} {'is' if certain == 1 else 'are'} almost certain (entropy below {CERTAIN} nats), yet "
        of = f"of {len(kl)}"
    return (
        f"Raw hidden states are saturated: {yet}in {len(wrong)} {of} the KL from the model's own policy "
        f"({_between(wrong)} nats) is more than a uniform policy could have ({_nats(uniform)}). "
        f"{remedy or on_screen(one)}"
    )


def on_screen(one: View) -> str:
    """What to do about a saturated readout, for a page or figure."""
    if "norm" in store.record(one.source)["selection"]["readouts"]:
        return "Choose the readout norm instead."
    return "Scan again with --readout both, and choose the readout norm."


def trust(one: View) -> str:
    """Whether raw hidden states can be trusted, with the numbers; empty if the KL wasn't measured.

    It is about the raw readout whatever readout the view shows; of a scan without it, about the view's.
    """
    record = store.record(one.source)
    if "raw" in record["selection"]["readouts"]:
        raw = replace(one, readout="raw")
        shown = "" if one.readout == "raw" else f"The numbers here are read {view.how(one.readout)}."
        if said := saturated(raw, shown):
            return said
    else:
        raw = one
    rows = _outputs(View(one.source, raw.readout))
    if "kl" not in rows or not rows["kl"].notna().any():
        return ""
    kl, uniform = _by_layer(rows, "kl"), math.log(record["d_vocab"])
    near = int((kl <= uniform).sum())
    subject = "Raw hidden states" if raw.readout == "raw" else f"Hidden states read {view.how(raw.readout)}"
    where = f" in {near} of {counted(len(kl), 'layer')}" if near < len(kl) else ""
    return (
        f"{subject} can be trusted{where}: {'there ' if where else ''}their KL from the model's own policy is no more "
        f"than a uniform policy could have ({_nats(uniform)} nats). After layer {kl.index[-1]} it is "
        f"{_nats(kl.iloc[-1])} nats."
    )


def _outputs(one: View) -> pd.DataFrame:
    """The rows of layer outputs in the table `layers`."""
    layers = view.layers(one)
    return layers[layers["site"] == "resid_post"]


def _by_layer(rows: pd.DataFrame, measure: str) -> pd.Series:
    """The mean of a measure over all tokens, by layer; layers without values are left out."""
    rows = rows.dropna(subset=measure)
    total = (rows[measure] * rows["tokens"]).groupby(rows["layer"]).sum()
    return total / rows.groupby("layer")["tokens"].sum()


def with_norm(command: Sequence[str]) -> str:
    """The command of a scan with `--readout both`, and without its folder, which holds the scan; empty if unknown."""
    words = repeat.repeated(command, "--readout")
    return shlex.join([*words, "--readout", "both"]) if words else ""


def about_training(one: View, changes: pd.DataFrame) -> list[str]:
    """The stages and the target layer; `changes` is `statistics.changes` with those of the FFN."""
    suggestion, about = targets.suggestion(changes), view.about(one)
    rollouts, every = about.rollouts, about.n_layers
    if rollouts < ENOUGH:
        said = [too_few(rollouts, suggestion["target"]), on_average(changes, every)]
        if suggestion["target"] is None:
            return said
        said.append(targets.in_words(suggestion))
    elif not suggestion["spans"]:  # NaN everywhere
        return []
    else:
        said = [stages_in_words(suggestion["spans"]), targets.in_words(suggestion)]
    if suggestion["target"] is None:
        said[-1] += " `internal-policy train` then needs --layer."
        if rollouts < FEW:
            said[-1] += f" A scan of {rollouts} rollouts may be too small to tell."
    having = changes["layer"].nunique()
    measured = having + len({layer for site in CHANGES["mlp"] for layer in view.lacking(view.check(one), site)})
    if measured < every:
        said[-1] += f" Only {measured} of {every} layers were measured."
    if having < measured:
        said[-1] += f" {having} of {counted(measured, 'layer')} {'has' if having == 1 else 'have'} an FFN."
    return said


def too_few(rollouts: int, target: int | None) -> str:
    """That so few rollouts can't tell the stages of layers, nor a target layer unless there is one."""
    what = "the layers' stages" + (" or a target layer" if target is None else "")
    return (
        f"{counted(rollouts, 'rollout')} {'is' if rollouts == 1 else 'are'} too few to tell {what}: intervals for all "
        f"layers at once need about {ENOUGH} or more."
    )


def on_average(changes: pd.DataFrame, every: int) -> str:
    """What the FFNs do to the entropy on average, without intervals; empty if a mean isn't finite or all are 0.

    `changes` is `statistics.changes`, and `every` the number of the model's layers.
    """
    mean = changes[(changes["change"] == "mlp") & (changes["part"] == "total")].set_index("layer")["mean"].sort_index()
    layers = {"raise": mean.index[mean > 0].tolist(), "lower": mean.index[mean < 0].tolist()}
    if not np.isfinite(mean).all() or not any(layers.values()):
        return ""
    where = {verb: "every layer" if len(at) == every else layers_in_words(at) for verb, at in layers.items() if at}
    return f"On average FFNs {_effects(where)}."


def stages_in_words(spans: Sequence[tuple[str, int, int]]) -> str:
    """What the FFNs do to the entropy, stage by stage, from `targets.spans`."""
    found: dict[str, list[int]] = {}
    for stage, first, last in spans:
        found.setdefault(stage, []).extend(range(first, last + 1))
    said = {stage: f"{layers_in_words(layers)} ({stage})" for stage, layers in found.items()}
    moved = _effects({verb: said[stage] for stage, verb in EFFECTS.items() if stage in said})
    if "integration" not in said:
        return f"FFNs {moved}."
    if not moved:
        return f"No significant change of entropy by FFNs was found in {said['integration']}."
    return f"FFNs {moved}; no significant change was found in {said['integration']}."


def _effects(where: Mapping[str, str]) -> str:
    """What FFNs do, as part of a sentence: `raise entropy in layer 1 and lower it in layers 0 and 2`."""
    verbs = enumerate(where.items())
    parts = [f"{verb} {'it' if number else 'entropy'} in {layers}" for number, (verb, layers) in verbs]
    return " and ".join(parts)


def layers_in_words(layers: Sequence[int]) -> str:
    """Layers in a sentence, such as `layer 3` or `layers 0, 2 to 6 and 9`."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and spans[-1][1] == layer - 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    words: list[str] = []
    for first, last in spans:
        words += [f"{first} to {last}"] if last > first + 1 else [str(layer) for layer in range(first, last + 1)]
    return f"layer{'' if len(layers) == 1 else 's'} {joined(words)}"


def _nats(value: float) -> str:
    """A number of nats with about three digits, never with an exponent."""
    decimals = next(digits for limit, digits in ((100, 0), (10, 1), (0.1, 2), (0, 3)) if value >= limit)
    return f"{value:.{decimals}f}"


def _between(values: pd.Series) -> str:
    low, high = _nats(values.min()), _nats(values.max())
    return low if low == high else f"{low} to {high}"


def next_commands(one: View, is_saturated: bool) -> list[str]:
    """Two commands that look further into a scan on disk, ready to copy."""
    assert isinstance(one.source, Path)
    record, called = store.record(one.source), name(one.source)
    selection: Any = record["selection"]
    others = sorted({*selection["readouts"]} - {one.readout}, key=lambda other: other != "norm")
    found = [f"internal-policy show {called} --readout {other}" for other in others[:1]]
    if is_saturated and "norm" not in others:
        found = [command for command in [with_norm(record.get("command", []))] if command]
    readout = "" if one.readout == selection["readouts"][0] else f" --readout {one.readout}"
    if "entropy" in selection["measures"]:
        figure = "change" if any({*pair} <= {*selection["sites"]} for pair in CHANGES.values()) else "flow"
        found.append(f"internal-policy plot {called} {figure}{readout} -o {figure}.html")
    return [*found, f"internal-policy dashboard --scan {called}"][:2]


def name(folder: Path) -> str:
    """What a command calls a scan: a bundled one's name, an address on the Hub, digits of a digest, or a folder."""
    if folder in bundle.scans():
        return folder.name
    if copied := address.of_folder(folder):
        return str(copied)
    if folder.parent.parent != store.root():
        return shlex.quote(str(folder))
    others = [other.name for other in store.scans(unfinished=True) if other != folder]
    lengths = range(SHORTEST, len(folder.name))
    unique = (n for n in lengths if not any(other.startswith(folder.name[:n]) for other in others))
    return folder.name[: next(unique, len(folder.name))]
