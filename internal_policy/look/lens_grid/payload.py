"""The numbers of one response as JSON, for the lens grid in a browser."""

import base64
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from internal_policy.look import findings, legend, theme, tokens, view
from internal_policy.look.heatmap import AROUND_ZERO, LOGARITHMIC
from internal_policy.look.view import CONTROLS, SHOWN_AT, View
from internal_policy.measure.sites import CHANGES, INPUT_OF, WITH_FINAL
from internal_policy.scans import positions, store

FORMAT = 1
"""Version of the payload, which the scripts check."""
PANEL = tokens.READ_AT_A_CELL
"""Sites whose top tokens the panel beside the grid shows."""
LONGEST_PROMPT = 400
"""Most tokens of a prompt that are sent; the last ones are kept."""
MOST = 1024
"""Most tokens of a response that are sent at once."""
LONGEST_TOKEN = 200
"""Characters after which the text of a token is cut."""
NO_TOKEN = 0xFFFFFFFF
"""Stands for a top token that was not measured."""
MANTISSA = 11
"""Bits that are cleared of a number's 23, which leaves more than three exact digits and compresses well."""
MEASURES = ("entropy", "kl", "rank", "logprob", "norm", "cosine", "entropy_at_input_norm", *CONTROLS)
"""Measured columns that are sent; `change` is added where it can be computed, and the probability of the top token is
the first of `topk_probs`."""
BETTER = {"probability": "high", "entropy": "low", "kl": "low", "rank": "low", "logprob": "high"}
"""Measure -> which end of its scale means that the policy is certain or correct."""


@dataclass(frozen=True)
class Field:
    """One measure of one site: its values by layer and position."""

    name: str
    values: np.ndarray
    """(layers, positions), or with the top k as a third axis; 4 bytes each."""


def payload(
    one: View,
    rollout: int,
    readouts: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    *,
    position: int | None = None,
    name: str = "",
) -> dict[str, Any]:
    """The numbers of one response at some sites and with some readouts, which `plane.js` reads.

    By default they are all readouts and the sites that the panel shows. A response of more than 1,024 tokens is sent in
    windows: the first one, or the one with `position`. `name` is what links call the scan. Raises InputError for a
    readout, site, rollout or position that the scan lacks.
    """
    record = view.check(one)
    whole, prompt = tokens.response(one, rollout), _prompt(one, rollout)
    response = tokens.window(whole, position, MOST)
    one = replace(one, first=int(response["position"].iloc[0]), last=int(response["position"].iloc[-1]))
    chosen = record["selection"]
    sent = measured(one) if sites is None else list(sites)
    if missing := [site for site in sent if site not in chosen["sites"]]:
        raise view.absent(one, "entropy", missing[0])
    read = [replace(one, readout=readout) for readout in readouts or chosen["readouts"]]
    planes = {each.readout: dict(_planes(each, rollout, sent, len(response))) for each in read}
    ids = _shown_ids(planes, [*response["id"], *prompt])
    texts = _texts(one, ids)
    index = {int(token): number for number, token in enumerate(ids)}
    return {
        "format": FORMAT,
        "scan": name or (findings.name(one.source) if isinstance(one.source, Path) else ""),
        "rollout": int(rollout),
        "n_layers": record["n_layers"],
        "d_vocab": record["d_vocab"],
        "k": chosen["top_k"] if "topk" in chosen["measures"] else 0,
        "first": one.first,
        "every": positions.of_record(record).every,
        "ends": [int(whole["position"].iloc[0]), int(whole["position"].iloc[-1])],
        "prompt": [texts[index[token]] for token in prompt],
        "tokens": [texts[index[token]] for token in response["id"]],
        "vocabulary": texts,
        "actual": [index[token] for token in response["id"]],
        "readouts": [_readout(replace(one, readout=readout)) for readout in chosen["readouts"]],
        "sites": [{"name": site, "title": legend.SITES[site].name} for site in WITH_FINAL if site in chosen["sites"]],
        "measures": list(_measures(record)),
        "lacking": {site: view.lacking(record, site) for site in WITH_FINAL if view.lacking(record, site)},
        "planes": {
            readout: {site: _encoded(layers, fields, ids) for site, (layers, fields) in found.items()}
            for readout, found in planes.items()
        },
    }


def measured(one: View) -> list[str]:
    """The sites of the panel that the scan has."""
    return [site for site in PANEL if site in view.check(one)["selection"]["sites"]]


def _prompt(one: View, rollout: int) -> list[int]:
    """The last token ids of the prompt."""
    if "prompt_ids" not in store.columns(one.source, "rollouts"):
        return []
    found = store.of_rollout(one.source, "rollouts", rollout, ["prompt_ids"])["prompt_ids"][0].as_py()
    return [int(token) for token in (found or [])[-LONGEST_PROMPT:]]


Plane = tuple[list[int], list[Field]]
"""The layers of a site's rows, and its fields."""


def _planes(one: View, rollout: int, sites: Sequence[str], positions: int) -> Iterator[tuple[str, Plane]]:
    """The plane of each site, and that of `final`."""
    record = view.check(one)
    layers, last = [int(layer) for layer in record["selection"]["layers"]], record["n_layers"]
    columns = store.columns(one.source, "policies")
    wanted = {site: [name for name in _names(one, site) if f"{site}.{name}" in columns] for site in (*sites, "final")}
    names = [f"{site}.{name}" for site, measures in wanted.items() for name in measures]
    names += [name for site in sites if (name := f"{INPUT_OF.get(site)}.entropy") in columns and name not in names]
    where = view.within(one)
    table = store.of_rollout(one.source, "policies", rollout, ["position", "layer", *names], where)
    table = table.sort_by([("position", "ascending"), ("layer", "ascending")])
    every = len(layers) + 1
    for site, measures in wanted.items():
        rows = slice(every - 1, every) if site == "final" else slice(0, every - 1)

        def read(column: str, rows: slice = rows) -> np.ndarray:
            values = _values(table[column], column.partition(".")[2])
            return values.reshape(positions, every, *values.shape[1:])[:, rows].swapaxes(0, 1)

        fields = [Field(name, read(f"{site}.{name}")) for name in measures]
        before = f"{INPUT_OF.get(site)}.entropy"
        if "entropy" in measures and before in columns:
            fields.append(Field("change", read(f"{site}.entropy") - read(before)))
        here = [last] if site == "final" else layers
        if site == "resid_pre" and "resid_post" in sites:  # the other rows are the outputs of the layers before
            kept = [number for number, layer in enumerate(here) if layer - 1 not in layers]
            here, fields = [here[n] for n in kept], [Field(field.name, field.values[kept]) for field in fields]
        yield site, (here, fields)


def _names(one: View, site: str) -> list[str]:
    """The columns of a site that are sent: those that are shown there with the readout."""
    here = [name for name in (*MEASURES, "topk_ids", "topk_probs") if site in SHOWN_AT.get(name, WITH_FINAL)]
    return [name for name in here if one.readout == "raw" or name != "entropy_at_input_norm"]


def _values(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """The values of a column, (rows,) or (rows, k), as float32, int32 (ranks) or uint32 (ids)."""
    array = column.combine_chunks()
    present = array.is_valid().to_numpy(zero_copy_only=False)
    if name.startswith("topk"):
        k = array.type.list_size
        flat = array.values.slice(array.offset * k, len(array) * k).to_numpy(zero_copy_only=False).reshape(-1, k)
        kind, nothing = (np.uint32, NO_TOKEN) if name == "topk_ids" else (np.float32, np.nan)
        return np.where(present[:, None], flat, nothing).astype(kind)
    values = array.to_numpy(zero_copy_only=False)
    if name == "rank":
        return np.where(present, np.nan_to_num(values.astype(float)), 0).astype(np.int32)
    return values.astype(np.float32)


def _shown_ids(planes: Mapping[str, Mapping[str, Plane]], others: Sequence[int]) -> np.ndarray:
    """Every token id that the payload names, sorted."""
    found = [np.asarray(others, dtype=np.uint32)]
    for sites in planes.values():
        for _, fields in sites.values():
            found += [np.unique(field.values) for field in fields if field.name == "topk_ids"]
    ids = np.unique(np.concatenate(found))
    return ids[ids != NO_TOKEN]


def _texts(one: View, ids: np.ndarray) -> list[str]:
    """The text of each token id."""
    texts = tokens.texts(one, pd.Series(ids.astype(np.int64)))
    return [
        "" if pd.isna(text) else text[:LONGEST_TOKEN] + ("…" if len(text) > LONGEST_TOKEN else "") for text in texts
    ]


def _readout(one: View) -> dict[str, str]:
    """A readout for the screen, with a note on what is left out and where its numbers mislead."""
    note = " ".join(filter(None, [positions.of_record(view.check(one)).note, findings.saturated(one)]))
    return {"name": one.readout, "title": view.how(one.readout), "note": note}


def _measures(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The measures that a cell can be coloured by."""
    chosen = record["selection"]
    measured, sites = [*chosen["measures"]], {*chosen["sites"]}
    if "topk" in measured and chosen["top_k"]:
        yield _measure("probability", record["d_vocab"])
    absent = [] if "raw" in chosen["readouts"] else ["entropy_at_input_norm"]
    for name in MEASURES:
        if name in measured and name not in absent and sites & {*SHOWN_AT.get(name, WITH_FINAL)}:
            yield _measure(name, record["d_vocab"])
    if "entropy" in measured and any({*pair} <= sites for pair in CHANGES.values()):
        yield _measure("change", record["d_vocab"])


def _measure(name: str, d_vocab: int) -> dict[str, Any]:
    title, unit = ("Probability of the top token", "") if name == "probability" else theme.MEASURES[name]
    most = log(d_vocab)
    fixed = {name: [0, most] for name in MEASURES if name.startswith(("entropy", "renyi"))}
    fixed |= {
        "probability": [0, 1],
        "rank": [1, d_vocab],
        "cosine": [-1, 1],
        "change": [-most, most],
        "logprob": [-most, 0],
        "kl": [0, most],
    }
    return {
        "name": name,
        "title": title,
        "unit": unit,
        "better": BETTER.get(name, ""),
        "fixed": fixed.get(name),
        "logarithmic": name in LOGARITHMIC,
        "signed": name in AROUND_ZERO,
        "sites": list(SHOWN_AT.get(name, WITH_FINAL)),
    }


def _encoded(layers: Sequence[int], fields: Sequence[Field], ids: np.ndarray) -> dict[str, Any]:
    """A plane as JSON: its arrays one after the other, compressed. Top tokens become places in the vocabulary."""
    arrays = []
    for field in fields:
        values = field.values
        if field.name == "topk_ids":
            place = np.searchsorted(ids, values).astype(np.uint32)
            values = np.where(values == NO_TOKEN, np.uint32(NO_TOKEN), place)
        elif values.dtype == np.float32:
            values = rounded(values)
        arrays.append(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    data = gzip.compress(b"".join(arrays), compresslevel=6, mtime=0)
    return {
        "layers": list(layers),
        "fields": [field.name for field in fields],
        "data": base64.b64encode(data).decode(),
    }


def rounded(values: np.ndarray) -> np.ndarray:
    """Round float32 numbers to 12 bits of mantissa (an error of at most 0.012%), which compresses well."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = ((bits + np.uint32(1 << (MANTISSA - 1))) >> np.uint32(MANTISSA)) << np.uint32(MANTISSA)
    return np.where(np.isfinite(values), nearest.view(np.float32), values).astype(np.float32)
