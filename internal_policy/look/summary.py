"""Readable tables of a scan: entropies by layer, target layers, and how it was measured."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from internal_policy.errors import counted
from internal_policy.look import comparison, legend, mismatch, statistics, view
from internal_policy.look.statistics import Average
from internal_policy.look.targets import targets as by_part
from internal_policy.look.view import View
from internal_policy.scans import positions, records, store
from internal_policy.tasks import pass_at_k

PARTS = {"total": "as measured (paper)", "direction": "direction alone", "norm": "norm alone"}
"""Part of an entropy change -> its name on screen."""


BRIEF = ("resid_post", "attn_out", "mlp_out", "final")
"""Sites that a table as wide as a terminal has room for."""


def by_layer(one: View, average: Average = "tokens", sites: Sequence[str] = tuple(legend.SITES)) -> pd.DataFrame:
    """Mean entropies at `sites` and entropy changes in nats, one row per layer; the last row is the model's own policy.

    Raises InputError if the entropy was not measured.
    """
    layers = view.layers(one, "entropy")
    if "entropy" not in layers:
        raise view.absent(one, "entropy")
    frame = statistics.by_layer(layers, one.readout, average)
    names = {site: mark.name for site, mark in legend.SITES.items() if site in sites}
    names |= {f"change_{change}": f"Δ {mark.name}" for change, mark in legend.CHANGES.items()}
    ordered = frame[[name for name in names if name in frame]].rename(columns=names)
    return ordered.rename_axis(columns=None).reset_index(names="layer")


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """The rows of `by_layer` as texts, below a row of its column names.

    The model's own entropy stands in the last row, below those of the layers' outputs where they were measured.
    """
    final, output = legend.SITES["final"].name, legend.SITES["resid_post"].name
    own = frame[final].notna() if final in frame else pd.Series(False, frame.index)
    if final in frame and output in frame:
        frame = frame.assign(**{output: frame[output].where(~own, frame[final])}).drop(columns=final)
    names = list(map(str, frame.columns))
    rows = [
        [
            final if is_own else str(layer),
            *(_number(name, value) for name, value in zip(names[1:], values, strict=True)),
        ]
        for is_own, layer, *values in frame.assign(own=own)[["own", *names]].itertuples(index=False)
    ]
    return [names, *rows]


def _number(name: str, value: float) -> str:
    return "" if pd.isna(value) else f"{value:+.3f}" if name.startswith("Δ") else f"{value:.3f}"


def targets(changes: pd.DataFrame) -> pd.DataFrame:
    """Target layer by the FFN's entropy change and by each of its parts, one row per part, layers from 0.

    `changes` is `statistics.changes`. With fewer than 4 rollouts the stages are empty.
    """
    found = by_part(changes)
    return pd.DataFrame(
        {
            "FFN's entropy change": [PARTS[part] for part in found["part"]],
            "target layer": found["target"],
            "hook point": [None if pd.isna(layer) else f"{layer}.resid_post" for layer in found["target"]],
            "runner-up": found["runner_up"],
            "stages": [stages_in_words(spans) for spans in found["spans"]],
        }
    )


def dashes(table: pd.DataFrame) -> str:
    """What missing layers in `targets` mean, in a sentence; empty if none is missing."""
    if table[["target layer", "runner-up"]].notna().all(axis=None):
        return ""
    return (
        "A dash means that no layer's FFN raises entropy significantly by that part of the change; for the runner-up, "
        "that no other layer's own interval is above 0."
    )


def stages_in_words(spans: Sequence[tuple[str, int, int]]) -> str:
    """Stages in words, such as `exploration 0 to 5, integration 6`."""
    return ", ".join(f"{stage} {first}" + (f" to {last}" if last > first else "") for stage, first, last in spans)


def marks(one: View) -> str:
    """How the responses of a view were marked, in a few words."""
    rows = view.rollouts(one, ["response"])
    return pass_at_k.outcome_in_words(rows["reward"], rows["response"])


def provenance(one: View) -> dict[str, str]:
    """How a scan was made, in words: name -> value. Unknown values are left out."""
    record = store.record(one.source)
    asked = record["asked"]
    entries = {
        "model": record["model"],
        "revision": asked.get("revision"),
        "weights": asked.get("identity"),
        "family": f"{_family(record)}, {counted(record['n_layers'], 'layer')}, d_model {record['d_model']}, "
        f"vocabulary {record['d_vocab']:,}",
        "precision": f"{record['dtype']} on {record['device']}",
        "quantization": record.get("quantization", {}).get("words"),
        "matrix product": record.get("product"),
        "readout": view.how(one.readout),
        "lens": ", ".join(_lens(record, name, file) for name, file in records.lenses(asked).items()),
        "rollouts": f"{record['rollouts']:,}, {counted(record['tokens'], 'token')}",
        "positions": str(positions.of_record(record)),
        "shown here": view.words(one) or "all of them",
        "problems": _problems(asked),
        "texts": _texts(asked.get("text") or ()),
        "sampling": _sampling(asked) if records.sampled(asked) else "none, the responses were given",
        "engine": _engine(asked),
        "mismatch": mismatch.mismatch(one.source),
        "measured": record["created"],
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "scan": f"{one.source} ({record['digest']}, schema {record['schema']})",
        "command": shlex.join(record.get("command", [])),
    }
    return {name: str(value) for name, value in entries.items() if value not in (None, "")}


def _lens(record: Mapping[str, Any], name: str, file: str) -> str:
    """A lens in words: its readout, its file, and a remark where it may belong to another model."""
    fitted = record.get("lenses", {}).get(name)
    if fitted is None or fitted["identity"] == record["asked"].get("identity"):
        return f"{name}: {file}"
    why = "its model unknown" if fitted["identity"] is None else f"fitted to another model, {fitted['model']}"
    return f"{name}: {file} ({why})"


def _family(record: Mapping[str, Any]) -> str:
    """The model type, and the row it was read with if that was proved when the scan was made; older scans don't say."""
    row = record.get("row") or {}
    here = f" (read as {row['name']}, proved on a tiny model for this scan)" if row.get("proved") == "here" else ""
    return f"{record['family']}{here}"


def _problems(asked: dict[str, Any]) -> str | None:
    """The source of the problems, and how many were used."""
    sources = [
        comparison.named(path, content)
        for path, content in asked.get("content", {}).items()
        if path not in records.lenses(asked).values()
    ]
    source = ", ".join(sources) or asked.get("problems")
    limit = asked.get("limit")
    return source if source is None or limit is None else f"{source}, at most {limit}"


def _texts(texts: Sequence[str]) -> str:
    """The beginnings of the texts that were measured, and how many more there are."""
    few = ", ".join(repr(text if len(text) <= 60 else f"{text[:60]}...") for text in texts[:3])
    return few + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def _engine(asked: Mapping[str, Any]) -> str | None:
    """The engine that sampled the responses; None for the model itself."""
    name = asked.get("engine")
    served = asked.get("served_model")
    return name if served is None else f"{name}, model {served}"


def _sampling(asked: dict[str, Any]) -> str:
    samples = asked.get("samples")
    per_problem = "" if samples is None else f"{samples} per problem, "
    limits = f"temperature {asked.get('temperature')}, top-p {asked.get('top_p')}, seed {asked.get('seed')}"
    return f"{per_problem}{limits}, at most {asked.get('max_new_tokens')} tokens"
