"""Ablate into a folder part by part, so that interrupted work continues where it stopped."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.measure import choice
from internal_policy.models.ablation import WRITES, ablated
from internal_policy.models.hooks import HookPoint
from internal_policy.models.memory import in_halves
from internal_policy.scans import effects, records, store
from internal_policy.scans.ablation import Ablator, Advance, Averages, Target, averages
from internal_policy.scans.effects import MEAN
from internal_policy.scans.positions import Positions
from internal_policy.scans.reader import Reader
from internal_policy.scans.sharing import claiming, turns
from internal_policy.tasks.generate import continued
from internal_policy.tasks.marking import mark
from internal_policy.tasks.prompts import Ids
from internal_policy.tasks.rollouts import Rollout, decoded

Smaller = Callable[[int], None]
"""Called with how many rollouts are read at once when memory has run out."""


def begun(folder: Path, reader: Reader, question: Mapping[str, Any]) -> str:
    """Write the settings of an ablation, unless it was begun already; return its matrix product (`Kernel.matmul`).

    Raises InputError if it was begun with a product that doesn't work here.
    """
    weight = reader.unembedding.weight
    if not (folder / effects.ASKED).exists():
        product = choice.choose(weight, weight.dtype)
        written = {"digest": store.digest(question), "asked": question, "product": product}
        folder.mkdir(parents=True, exist_ok=True)
        records.write(folder / effects.ASKED, written, once=True)
    product = effects.asked(folder)["product"]
    if not choice.works(product, weight.dtype, weight.device):
        raise InputError(
            f"{folder} was started where policies are measured in another way ('{product}'), which doesn't work here. "
            "Continue it there, or choose another --output."
        )
    return product


def averaged(
    folder: Path,
    reader: Reader,
    batches: Sequence[Sequence[Rollout]],
    targets: Sequence[Target],
    positions: Positions,
    advance: Advance,
    smaller: Smaller,
) -> Averages:
    """What each target adds to the stream, as a mean; from the folder if it is there. Always as the file has it."""
    path = folder / effects.AVERAGES
    with claiming(folder) as claims:
        for _, mine in turns([effects.AVERAGES], claims, lambda name: store.has_end(folder / name), waits=True):
            if mine:
                found = averages(reader, batches, targets, positions, advance=advance, smaller=smaller)
                layers, modules = zip(*found, strict=True)
                means = pa.array([mean.tolist() for mean in found.values()], pa.list_(pa.float64()))
                table = {"layer": pa.array(layers, pa.int32()), "module": pa.array(modules, pa.string()), "mean": means}
                store.write_table(path, pa.table(table))
                claims.release(effects.AVERAGES)
    return {
        (row["layer"], row["module"]): torch.tensor(row["mean"], dtype=torch.float64)
        for row in store.read_part(path).to_pylist()
    }


def measured(
    folder: Path, ablator: Ablator, batches: Sequence[Sequence[Rollout]], advance: Advance, smaller: Smaller
) -> None:
    """Write the parts of the table `effects` that aren't in the folder, one for each batch."""
    firsts = [sum(map(len, batches[:number])) for number in range(len(batches))]
    layers = len({layer for layer, _ in ablator.targets})
    names = effects.part_names(effects.EFFECTS, len(batches))
    with claiming(folder) as claims:
        for name, mine in turns(names, claims, lambda name: store.has_end(folder / name), waits=True):
            number = names.index(name)
            if mine:
                table = ablator.effects(batches[number], firsts[number], advance=advance, smaller=smaller)
                store.write_table(folder / name, table)
                claims.release(name)
            else:
                advance(len(batches[number]) * layers, 0)


Answers = Callable[[], tuple[list[float], int]]
"""Samples responses with the model as it is now: the mean reward for each problem, and how many tokens that took."""


@dataclass(frozen=True)
class Asking:
    """The problems that are answered with each ablated model, and how."""

    prompts: Sequence[Ids]
    """Token ids of each prompt."""
    answers: Sequence[str]
    """The correct answers."""
    samples: int
    """Responses to each problem."""
    options: Mapping[str, Any]
    """Arguments of `generate.continued`, without the batch size."""
    batch_size: int
    """Responses that are sampled at a time."""

    def rewards(self, model: Any, tokenizer: PreTrainedTokenizerBase, smaller: Smaller) -> tuple[list[float], int]:
        """The mean reward for each problem, and how many tokens were sampled.

        The same random numbers are drawn in each call, whatever is ablated.
        """
        prompts = [prompt for prompt in self.prompts for _ in range(self.samples)]

        def sample(span: slice) -> list[Ids]:
            some, size = prompts[span], span.stop - span.start
            batches = continued(model, tokenizer, some, **self.options, batch_size=size, first=span.start)
            return [ids for batch in batches for ids in batch]

        responses: list[Ids] = []
        for start in range(0, len(prompts), self.batch_size):
            size = min(self.batch_size, len(prompts) - start)
            halves = in_halves(lambda span, at=start: sample(slice(at + span.start, at + span.stop)), size, smaller)
            responses += [ids for half in halves for ids in half]
        marks = [
            mark(decoded(tokenizer, ids), self.answers[number // self.samples]) or 0.0
            for number, ids in enumerate(responses)
        ]
        means = np.reshape(marks, (-1, self.samples)).mean(1)
        return means.tolist(), sum(map(len, responses))


def rewarded(folder: Path, ablator: Ablator, answers: Answers, advance: Advance) -> None:
    """Write the parts of the table `rewards` that aren't in the folder: one for the model itself, one for each target.

    `advance` is called for each model that has answered, with the tokens it took.
    """
    model, rows = ablator.reader.model, [(effects.INTACT, "", "")]
    parts = [rows, *([(*target, name) for name in ablator.replacements] for target in ablator.targets)]
    names = effects.part_names(effects.REWARDS, len(parts))
    with claiming(folder) as claims:
        for name, mine in turns(names, claims, lambda name: store.has_end(folder / name), waits=True):
            tables, rows = [], parts[names.index(name)]
            for layer, module, how in rows:
                if not mine:
                    advance(1, 0)
                    continue
                vector = ablator.averages[layer, module] if how == MEAN else None
                point = None if layer == effects.INTACT else HookPoint(layer, WRITES[module])
                with nullcontext() if point is None else ablated(model, point, vector):
                    found, tokens = answers()
                tables.append(_rewards(layer, module, how, found))
                advance(1, tokens)
            if mine:
                store.write_table(folder / name, pa.concat_tables(tables))
                claims.release(name)


def _rewards(layer: int, module: str, replacement: str, rewards: Sequence[float]) -> pa.Table:
    count = len(rewards)
    columns = {
        "problem": pa.array(range(count), pa.int32()),
        "layer": pa.array([layer] * count, pa.int32()),
        "module": pa.array([module] * count, pa.string()),
        "replacement": pa.array([replacement] * count, pa.string()),
        "reward": pa.array(rewards, pa.float64()),
    }
    return pa.table(columns)


def closed(folder: Path, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the record of an ablation whose parts are complete, and return it. `facts` go into the record."""
    settings = effects.asked(folder)
    patterns = (effects.AVERAGES, f"{effects.EFFECTS}-*.parquet", f"{effects.REWARDS}-*.parquet")
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    with claiming(folder) as claims:
        for _, mine in turns([effects.RECORD], claims, lambda name: (folder / name).exists(), waits=True):
            if mine:
                claims.sweep()
                written = {path.name: files.fingerprint(path) for path in paths}
                records.write(
                    folder / effects.RECORD, {"schema": records.SCHEMA, **settings, **facts, "files": written}
                )
    return effects.record(folder)
