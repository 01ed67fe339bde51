"""A lens card: what a lens was fitted on, how close it comes to the model, and how far it can be trusted."""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from internal_policy.lenses.lens import FittedLens, Map, Translator
from internal_policy.tasks.rollouts import Rollout

INTERVAL = ("mean", "low", "high")
TABLES = {"kl": ("readout", *INTERVAL), "gain": INTERVAL, "halves": ("difference", *INTERVAL)}
"""Table in a lens file -> its columns after layer and site."""
OTHERS = {
    *TABLES,
    "maps",
    "kind",
    "model",
    "identity",
    "d_model",
    "n_layers",
    "fitted_on",
    "held_out",
    "provenance",
    "digests",
}
"""Entries of a lens file that aren't options of the fit."""
LIMIT = 1e300
"""Numbers beyond this, which JSON can hold, aren't taken for numbers."""


@dataclass(frozen=True)
class Corpus:
    """Texts that a lens was fitted or measured on. A field is None if the file doesn't tell."""

    file: str | None
    """Name of the file or data set."""
    source: str | None
    """sampled, if the model answered the problems of the file, or given, if the file has the texts."""
    sha256: str | None
    """Digest of the token ids (`digest`)."""
    problems: int | None
    """How many problems, or prompts."""
    rollouts: int | None
    """How many texts, a prompt and its response each."""
    sequences: int | None
    """How many sequences of tokens a Jacobian was averaged over."""
    tokens: int | None
    """How many response tokens, or tokens of the sequences."""


@dataclass(frozen=True, eq=False)
class Card:
    """What is known about a lens, from its maps and from what its file tells."""

    kind: str
    """tuned or jacobian."""
    model: str | None
    """Name of the model that it was fitted to; None if the file doesn't tell."""
    identity: str | None
    """A value that differs for different weights of the model."""
    d_model: int
    """Size of a hidden state."""
    n_layers: int | None
    """Decoder layers of the model."""
    fitted_on: Corpus | None
    """What it was fitted on."""
    held_out: Corpus | None
    """What it was measured on."""
    options: Mapping[str, str | int | float | bool]
    """Options of the fit."""
    maps: pd.DataFrame
    """layer, site, scale, off_identity: a row for each hook point; see `maps`."""
    kl: pd.DataFrame
    """layer, site, readout, mean, low, high: KL(final || readout) in nats on held-out tokens."""
    gain: pd.DataFrame
    """layer, site, mean, low, high: KL(final || norm) - KL(final || lens), with intervals that hold for all rows."""
    halves: pd.DataFrame
    """layer, site, difference, mean, low, high: see `difference`; KL in nats between lenses of two halves."""
    unreadable: tuple[str, ...]
    """Entries of the file that aren't what they should be, and are left out."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What the card doesn't know, in words."""
        known = {
            "the model": self.model,
            "its weights": self.identity,
            "the texts it was fitted on": self.fitted_on,
            "the held-out KL": len(self.kl),
            "how it compares with the logit lens": len(self.gain),
            "whether two halves of the texts give the same lens": len(self.halves),
        }
        return tuple(name for name, value in known.items() if not value)


def of(lens: FittedLens) -> Card:
    """The card of a lens. Entries of `lens.about` that are damaged or have the wrong type are left out."""
    about, points, unreadable = lens.about, {(point.layer, point.site) for point in lens.at}, []

    def taken(name: str, found: Any) -> Any:
        if found is None and about.get(name) not in (None, "", [], {}):
            unreadable.append(name)
        return found

    tables = {name: taken(name, _table(about.get(name), name, points)) for name in TABLES}
    fitted_on, held_out = (taken(name, _corpus(about.get(name))) for name in ("fitted_on", "held_out"))
    options = {name: taken(name, _scalar(value)) for name, value in about.items() if name not in OTHERS}
    if isinstance(told := about.get("provenance"), Mapping):
        options |= {f"provenance.{name}": _scalar(value) for name, value in told.items()}
    if fitted_on is None:
        fitted_on = _corpus({"problems": about.get("n_prompts")})  # of published Jacobian lenses
    return Card(
        kind=lens.kind,
        model=taken("model", _text(about.get("model"))),
        identity=taken("identity", _text(about.get("identity"))),
        d_model=len(next(iter(lens.at.values()))[0]),
        n_layers=taken("n_layers", _count(about.get("n_layers"))),
        fitted_on=fitted_on,
        held_out=held_out,
        options={str(name): value for name, value in options.items() if value is not None},
        maps=maps(lens),
        **{name: _empty(name) if table is None else table for name, table in tables.items()},
        unreadable=tuple(str(name) for name in unreadable),
    )


def about(lens: FittedLens, **tables: pd.DataFrame) -> dict[str, Any]:
    """Entries of a lens file for its card: its kind, `maps`, and the tables kl, gain and halves where there are any."""
    frames = {**tables, "maps": maps(lens)}
    return {"kind": lens.kind, **{name: _records(frame) for name, frame in frames.items()}}


def corpus(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """The size of a corpus and its digest, for a lens file."""
    return {
        "problems": len({rollout.problem or str(number) for number, rollout in enumerate(rollouts)}),
        "rollouts": len(rollouts),
        "tokens": sum(len(rollout.response_ids) for rollout in rollouts),
        "sha256": digest(rollouts),
    }


def digest(rollouts: Sequence[Rollout]) -> str:
    """SHA-256 of the token ids: of the JSON, without spaces, of a list of [prompt ids, response ids]."""
    ids = [[[*rollout.prompt_ids], [*rollout.response_ids]] for rollout in rollouts]
    return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()


def matrix(found: Map) -> Float[Tensor, "d_model d_model"]:
    """What a map multiplies a hidden state by: I + W of a translator, whose bias is left out, or J."""
    if isinstance(found, Translator):
        return found.weight + torch.eye(len(found.weight), dtype=found.weight.dtype, device=found.weight.device)
    return found.jacobian


def maps(lens: FittedLens) -> pd.DataFrame:
    """How far each map M is from a multiple of the identity: layer, site, scale, off_identity.

    `scale` is the c that makes |M - c I| smallest, in the Frobenius norm, which is trace(M) / d_model. `off_identity`
    is |M - c I| / |M|: 0 for a multiple of the identity, which is the logit lens, and 1 if no part of M is one.
    """
    rows = []
    for point, found in lens.at.items():
        each = matrix(found).double()
        scale = each.trace() / len(each)
        rest = each - scale * torch.eye(len(each), dtype=each.dtype, device=each.device)
        rows.append((point.layer, point.site, scale.item(), _ratio(rest.norm().item(), each.norm().item())))
    return pd.DataFrame(rows, columns=["layer", "site", "scale", "off_identity"])


def difference(a: FittedLens, b: FittedLens) -> pd.DataFrame:
    """How much the maps of two lenses differ: layer, site, difference.

    For A and B that is |A - B| / |(A + B) / 2| in the Frobenius norm: 0 for equal maps, and at most 2 for A = -B,
    where the mean is 0. Hook points are those of `a`; raises InputError if `b` lacks one.
    """
    b.check(a.at)
    rows = []
    for point, found in a.at.items():
        one, other = matrix(found).double(), matrix(b.at[point]).double()
        rows.append((point.layer, point.site, _ratio((one - other).norm().item(), ((one + other) / 2).norm().item())))
    return pd.DataFrame(rows, columns=["layer", "site", "difference"])


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON, with null for a missing interval."""
    found = frame.astype(object).where(frame.notna() & ~frame.isin([math.inf, -math.inf]), None)
    return [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]


def _ratio(part: float, whole: float) -> float:
    """part / whole; 0 for nothing of nothing."""
    return part / whole if whole else math.inf if part else 0.0


def _table(rows: Any, name: str, points: Collection[tuple[int, str]]) -> pd.DataFrame | None:
    """A table of a lens file; None unless it has numbers for hook points of the lens, no row twice."""
    if not isinstance(rows, list) or not rows:
        return None
    columns, found = TABLES[name], {}
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(site := row.get("site"), str):
            return None
        layer, readout = _count(row.get("layer")), row.get("readout", "")
        if layer is None or (layer, site) not in points or not isinstance(readout, str):
            return None
        values = {column: _number(row.get(column)) for column in columns if column != "readout"}
        if values["mean"] is None or (layer, site, readout) in found:
            return None
        found[layer, site, readout] = {"layer": layer, "site": site, "readout": readout, **values}
    frame = pd.DataFrame([*found.values()])[["layer", "site", *columns]]
    return frame.astype({column: float for column in columns if column != "readout"})


def _empty(name: str) -> pd.DataFrame:
    kinds = {"layer": "int64", "site": "str", "readout": "str"}
    columns = ("layer", "site", *TABLES[name])
    return pd.DataFrame({column: pd.Series(dtype=kinds.get(column, "float64")) for column in columns})


def _corpus(found: Any) -> Corpus | None:
    """What a lens file tells about a corpus; None if nothing can be understood."""
    if not isinstance(found, Mapping):
        return None
    names, counts = ("file", "source", "sha256"), ("problems", "rollouts", "sequences", "tokens")
    facts: dict[str, Any] = {name: _text(found.get(name)) for name in names}
    facts |= {name: _count(found.get(name)) for name in counts}
    return Corpus(**facts) if any(value is not None for value in facts.values()) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LIMIT
    return float(value) if is_number else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LIMIT else None


def _scalar(value: Any) -> str | int | float | bool | None:
    return value if isinstance(value, bool) or _number(value) is not None else _text(value)
