"""How well the gradient at each hook point agrees with GRPO's, and which layer is best worth training first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from internal_policy import bundle, files
from internal_policy.errors import InputError, counted, joined, quoted
from internal_policy.look.bootstrap import CONFIDENCE
from internal_policy.scans import records, settings, store

RECORD, TABLE, ROLLOUTS = "alignment.json", "alignment.parquet", "rollouts.parquet"
"""Files of an alignment: its settings and facts, its numbers, and the responses if they were sampled for it."""
NEEDED = {
    "asked": dict[str, Any],
    "model": str,
    "created": str,
    "kept": float,
    **dict.fromkeys(("n_layers", "prompts", "with_spread", "responses", "blocks"), int),
}
"""Field of the record -> its type."""
MEASURES = {"gain_in_batch", "gain", "cosine_in_batch"}
"""Measures that the table must have at every layer, once for each site and readout."""
KEYS, NUMBERS = ("site", "readout", "measure"), ("layer", "cost", "mean", "low", "high")
"""Columns of texts and of numbers that the table must have."""
PROMPTS = 96
"""Prompts that are answered for an alignment, unless told otherwise."""
READOUTS = {"raw": "raw", "norm": "through the final norm"}
"""Readout -> how hidden states are unembedded, in words."""


@dataclass(frozen=True, eq=False)
class AlignmentTable:
    """The numbers of an alignment, and what they were measured on."""

    about: Mapping[str, Any]
    """Its facts: model, n_layers, prompts, with_spread, responses, blocks and kept; one on disk has its record."""
    table: pd.DataFrame
    """The numbers, a row for each layer, site, readout and measure, as in alignment.parquet."""


@dataclass(frozen=True)
class Best:
    """The layer that is best worth training first, at one site through one readout."""

    layer: int
    """The layer, from 0."""
    gain: float
    """Its first-order gain as a share of GRPO's."""
    low: float
    """Lower end of the 95% interval of the gain."""
    high: float
    """Upper end."""
    cost: float
    """Cost of its step as a share of GRPO's."""
    alike: tuple[int, ...]
    """Other layers whose gain for their cost isn't significantly lower."""

    @property
    def worth(self) -> float:
        """Gain for its cost; GRPO's own is 1."""
        return self.gain / self.cost


def folders() -> list[Path]:
    """The folders of the alignments in the cache, newest first."""
    found = [path.parent for path in store.root().glob(f"*/*/{RECORD}")]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def record(folder: Path) -> Mapping[str, Any]:
    """The settings and facts of an alignment. Raises InputError if there are none, or they are damaged."""
    path = folder / RECORD
    if not path.exists():
        raise InputError(f"{folder} is not an alignment. Run `internal-policy align`.")
    try:
        found = records.read(path)
        if not {*found} >= {*NEEDED}:
            raise ValueError("it isn't the record of an alignment")
        if wrong := next((name for name, kind in NEEDED.items() if not settings.fits(found[name], kind)), None):
            raise ValueError(f"'{wrong}' holds {quoted(found[wrong])}")
        if "model" not in found["asked"]:
            raise ValueError("it doesn't name the model")
        if complaint := settings.complaint(found["asked"]):
            raise ValueError(complaint)
    except records.DAMAGE as error:
        raise InputError(f"{path} is damaged ({error}). Remove the folder and run the command again.") from error
    return found


def table(folder: Path) -> pd.DataFrame:
    """The numbers of an alignment, a row for each layer, site, readout and measure. Raises InputError."""
    try:
        found = store.read_part(folder / TABLE).to_pandas()
    except InputError as error:
        raise InputError(f"{folder / TABLE} is damaged or missing. Remove the folder and run align again.") from error
    numbers = [name for name in NUMBERS if name in found and pd.api.types.is_numeric_dtype(found[name])]
    texts = [name for name in KEYS if name in found and all(type(value) is str for value in found[name])]
    lacks = len(numbers) + len(texts) < len(NUMBERS) + len(KEYS) or "left_out" not in found or not len(found)
    if lacks or not {*found["readout"]} <= {*READOUTS} or not _has_measures(found):
        raise InputError(f"{folder / TABLE} isn't the table of an alignment. Remove the folder and run align again.")
    return found


def _has_measures(found: pd.DataFrame) -> bool:
    """Whether each layer has each measure once."""
    needed = found[found["measure"].isin(MEASURES)]
    counts = needed.groupby(["site", "readout", "layer"], dropna=False)["measure"].agg(["size", "nunique"])
    layers = found.groupby(["site", "readout", "layer"], dropna=False).ngroups
    return len(counts) == layers and bool((counts == len(MEASURES)).all(axis=None))


def is_whole(folder: Path) -> bool:
    """Whether a folder has a complete alignment."""
    return (folder / RECORD).exists() and store.has_end(folder / TABLE)


def best(found: pd.DataFrame, n_layers: int, site: str = "resid_post", readout: str = "raw") -> Best | None:
    """The layer below the last one with the largest gain for its cost; None if no gain is significantly above 0.

    The gain is that in the batch, because its order by layer is surer than that of the gain on other prompts. The last
    layer isn't suggested: its step costs as much as GRPO's, and its policy is the model's own but for the final norm.
    """
    rows = found[(found["site"] == site) & (found["readout"] == readout) & (found["measure"] == "gain_in_batch")]
    rows = rows[rows["layer"] < n_layers - 1].reset_index(drop=True)
    if not len(known := rows[rows["low"] > 0]):
        return None
    top = known.iloc[int((known["mean"] / known["cost"]).argmax())]
    alike = [int(row["layer"]) for _, row in rows.iterrows() if row["layer"] != top["layer"] and _alike(top, row)]
    gain, low, high, cost = (float(top[name]) for name in ("mean", "low", "high", "cost"))
    return Best(int(top["layer"]), gain, low, high, cost, tuple(alike))


def _alike(top: "pd.Series[Any]", other: "pd.Series[Any]") -> bool:
    """Whether the gain for its cost of `other` isn't significantly below that of `top`, by a paired jackknife."""
    from scipy.stats import t  # takes a third of a second to import

    left_out = np.asarray(top["left_out"]) / top["cost"] - np.asarray(other["left_out"]) / other["cost"]
    error = np.sqrt((len(left_out) - 1) * left_out.var())
    gap = top["mean"] / top["cost"] - other["mean"] / other["cost"]
    return bool(gap < float(t.ppf(1 - (1 - CONFIDENCE) / 2, len(left_out) - 1)) * error)


def policies(found: pd.DataFrame) -> list[tuple[str, str]]:
    """The sites and readouts that were measured."""
    return [(str(site), str(readout)) for site, readout in found[["site", "readout"]].drop_duplicates().to_numpy()]


def sentences(found: pd.DataFrame, n_layers: int) -> list[str]:
    """Which layer is best worth training first, by site and readout."""
    return [_sentence(best(found, n_layers, site, how), site, how) for site, how in policies(found)]


def _sentence(one: Best | None, site: str, readout: str) -> str:
    where = f"{readout}: " if site == "resid_post" else f"{site}, {readout}: "
    if one is None:
        return f"{where}no layer below the last has a gain significantly above 0, so none is suggested."
    others = f" {_layers(one.alike)} can't be told apart from it." if one.alike else ""
    step = "gains more" if one.worth < 1 else "gains less"
    return (
        f"{where}layer {one.layer} is best worth training first. Its step has {one.gain:.2f} of GRPO's gain "
        f"({one.low:.2f} to {one.high:.2f}) at {one.cost:.2f} of its cost.{others} A step of GRPO {step} for its cost: "
        f"1.00 against {one.worth:.2f}."
    )


def _layers(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"Layers {', '.join(first)} and {last}" if first else f"Layer {last}"


def facts(about: Mapping[str, Any]) -> str:
    """How much was measured, and how the intervals were made."""
    prompts, spread, blocks = about["prompts"], about["with_spread"], about["blocks"]
    size = f"{spread // blocks} to {-(-spread // blocks)}" if spread % blocks else str(spread // blocks)
    each = "one prompt" if size == "1" else f"one of {blocks} blocks of {size} prompts"
    return (
        f"{counted(prompts, 'prompt')}, {spread} with responses of different rewards; "
        f"{counted(about['responses'], 'response')}. Intervals are 95%, by leaving out {each}. Of the gain of GRPO's "
        f"own step on these prompts, {about['kept']:.0%} remains on prompts that it wasn't taken from."
    )


def of_model(identity: str) -> list[Path]:
    """The alignments of a model, newest first and then the bundled ones, by the identity of its weights."""
    return [folder for folder in whole() if record(folder)["asked"].get("identity") == identity]


def whole() -> list[Path]:
    """The folders of the complete alignments: those of the cache, newest first, and the bundled ones."""
    found = []
    for folder in (*folders(), *bundle.alignments()):
        try:
            record(folder)
        except InputError:  # `internal-policy ls` names it
            continue
        found += [folder] if is_whole(folder) else []
    return found


def find(name: str) -> Path:
    """The folder of an alignment, given its path or its name in `internal-policy ls`, or the start of that.

    Raises InputError, with the names of those that exist.
    """
    if name and files.is_folder(Path(name)) and (Path(name) / RECORD).is_file():
        return Path(name)
    known = whole()
    for same in (str.__eq__, str.startswith):
        found = {folder.name: folder for folder in reversed(known) if name and same(folder.name, name)}
        if len(found) == 1:
            return next(iter(found.values()))
    names = joined([folder.name for folder in known]) if known else "none"
    raise InputError(f"There is no alignment '{name:.80}'. Known are {names}. Run `internal-policy align`.")


def read(folder: Path) -> AlignmentTable:
    """The record and the numbers of an alignment. Raises InputError if they are missing or damaged."""
    return AlignmentTable(record(folder), table(folder))
