"""Scans to measure the dashboard on: one like a language model's, and a large one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from internal_policy import bundle, files
from internal_policy.scans import records, store
from internal_policy.scans.selection import Plan, Selection, plan
from internal_policy.scans.tables import layers_table, policies_table

PART = 8
"""Rollouts in a part, as `scan` writes them."""
VOCABULARY = 151_936
LENGTHS = (96, 700, 96, 700)
"""Tokens of the responses that are joined from the bundled scan. Those of one length are told apart by their order."""
SOURCE = "smollm2-135m"
"""The bundled scan that they are made of."""


def join(folder: Path) -> None:
    """Write a scan of responses of some lengths, made of the tokens of the bundled scan in random order.

    Repeated numbers get a little noise, because a repeated token would compress better than another one.
    """
    source, random = bundle.DATA / "scans" / SOURCE, np.random.default_rng(0)
    policies, rollouts, layers = (_table(source, kind) for kind in ("policies", "rollouts", "layers"))
    policies = policies.sort_by([(name, "ascending") for name in ("rollout", "position", "readout", "layer")])
    cells = len(policies) // sum(len(ids) for ids in rollouts["response_ids"].to_pylist())
    every = np.concatenate([np.asarray(ids) for ids in rollouts.sort_by("rollout")["response_ids"].to_pylist()])
    parts, ids = [], []
    for rollout, length in enumerate(LENGTHS):
        order = np.concatenate([random.permutation(len(every)) for _ in range(1 + length // len(every))])[:length]
        rows = policies.take((order[:, None] * cells + np.arange(cells)).ravel())
        place = {"rollout": np.full(len(rows), rollout, np.int32)}
        place["position"] = np.repeat(np.arange(length, dtype=np.int32), cells)
        columns = {name: place.get(name, _shaken(rows[name], random)) for name in rows.column_names}
        parts.append(pa.table(columns, schema=policies.schema))
        ids.append(every[order])
    told = rollouts.slice(0, len(LENGTHS)).to_pydict() | {"rollout": list(range(len(LENGTHS))), "response_ids": ids}
    layers = layers.filter(pc.field("rollout") < len(LENGTHS))
    tables = {"rollouts": pa.table(told, schema=rollouts.schema), "policies": pa.concat_tables(parts), "layers": layers}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, table in tables.items():
        store.write_table(store.part_path(folder, kind, 0), table, group="rollout")
    shutil.copy(source / store.VOCABULARY, folder)
    _record(folder, source, rollouts=len(LENGTHS), tokens=sum(LENGTHS))


def _table(folder: Path, kind: str) -> pa.Table:
    return pa.concat_tables([store.read_part(path) for path in sorted(folder.glob(f"{kind}-*.parquet"))])


def _shaken(column: pa.ChunkedArray, random: np.random.Generator) -> Any:
    """The column, with noise in the last bits of plain numbers."""
    if not pa.types.is_float32(column.type):
        return column
    return (column.to_numpy() * (1 + 1e-3 * random.standard_normal(len(column)))).astype(np.float32)


def _record(folder: Path, source: Path, **changed: Any) -> None:
    """Write the record of a scan, like that of another."""
    names = [path.name for path in sorted(folder.glob("*.parquet"))]
    written = {name: files.fingerprint(folder / name) for name in names}
    footers = {name: files.footer(folder / name) for name in names}
    records.write(folder / store.RECORD, {**store.record(source), **changed, "files": written, "footers": footers})


def numbers(random: np.random.Generator, planned: Plan, tokens: int, top_k: int) -> dict[tuple[str, str], np.ndarray]:
    """Random measures of `tokens` tokens at every hook point, in realistic ranges."""
    shape = (tokens, len(planned.points))
    names = ("kl", "cosine", "entropy_at_input_norm")
    drawn: dict[str, np.ndarray] = {name: random.random(shape, dtype=np.float32) for name in names}
    drawn["entropy"] = random.random(shape, dtype=np.float32) * np.float32(np.log(VOCABULARY))
    drawn["logprob"] = -drawn["kl"]
    drawn["norm"] = 1 + drawn["kl"]
    drawn["rank"] = random.integers(1, VOCABULARY, shape).astype(np.float32)
    drawn["topk_ids"] = random.integers(0, VOCABULARY, (*shape, top_k), dtype=np.int32)
    drawn["topk_probs"] = np.sort(random.random((*shape, top_k), dtype=np.float32))[..., ::-1]
    return {("raw", name): values for name, values in drawn.items()}


def make(folder: Path, rollouts: int, tokens: int, layers: int) -> None:
    """Write a scan of random numbers with the given rollouts, tokens in each, and layers."""
    selection, random = Selection(tuple(range(layers)), readouts=("raw",)), np.random.default_rng(0)
    planned = plan(selection)
    folder.mkdir(parents=True, exist_ok=True)
    for part, first in enumerate(range(0, rollouts, PART)):
        lengths = [tokens] * min(PART, rollouts - first)
        drawn = numbers(random, planned, sum(lengths), selection.top_k)
        ids = random.integers(0, VOCABULARY, (len(lengths), tokens), dtype=np.int32)
        told = {
            "rollout": np.arange(first, first + len(lengths), dtype=np.int32),
            "problem": ["?"] * len(lengths),
            "answer": ["1"] * len(lengths),
            "response_ids": pa.array(list(ids), pa.list_(pa.int32())),
            "response": [""] * len(lengths),
            "reward": random.integers(0, 2, len(lengths)).astype(float),
            "finished": [True] * len(lengths),
        }
        tables = {
            "rollouts": pa.table(told),
            "policies": policies_table(drawn, selection, planned, layers, [*map(range, lengths)], first),
            "layers": layers_table(drawn, selection, planned, layers, [*map(range, lengths)], first),
        }
        for kind, table in tables.items():
            store.write_table(store.part_path(folder, kind, part), table, group="rollout")
    vocabulary = pa.table({"id": np.arange(VOCABULARY), "token": [f"token{n}" for n in range(VOCABULARY)]})
    store.write_table(folder / store.VOCABULARY, vocabulary)
    chosen = store.record(bundle.DATA / "scans" / "demo-qwen3")["selection"]
    _record(
        folder,
        bundle.DATA / "scans" / "demo-qwen3",
        model="synthetic",
        n_layers=layers,
        d_vocab=VOCABULARY,
        rollouts=rollouts,
        tokens=rollouts * tokens,
        selection={**chosen, "layers": list(selection.layers), "readouts": ["raw"]},
    )
