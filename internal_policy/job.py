"""Do a scan on disk, part by part, so that an interrupted one goes on where it stopped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from internal_policy import cache, files
from internal_policy.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from internal_policy.policy import Lens
    from internal_policy.rollouts import Rollout
    from internal_policy.selection import Selection

Advance = Callable[[int, int], None]
"""Told the rollouts and the response tokens of each part when it is whole."""


@dataclass(frozen=True)
class Source:
    """Where the rollouts of a scan come from, a batch a part."""

    rollouts: int
    """How many there are."""
    batch_size: int
    """How many are in a part; the last may have fewer."""
    batch: Callable[[int], Sequence["Rollout"]]
    """Generates, or takes, those of a part."""

    @property
    def parts(self) -> range:
        """The numbers of the parts."""
        return range(-(-self.rollouts // self.batch_size))


def claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but this scan. Raises InputError."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --output a new folder.")
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return  # a name with a dot is what a killed run was about to write
    if not (folder / cache.ASKED).is_file():
        raise InputError(f"{folder} is not empty and holds no scan; give --output a new folder.")
    if cache.asked(folder)["digest"] != cache.digest(asked):
        raise InputError(f"{folder} holds the scan of another question; give --output a new folder.")


def discard_damaged(folder: Path) -> list[str]:
    """Remove the parts of a finished scan that are not as they were written, so that `run` measures them again.

    Returns the names of the damaged files: all of them where the record itself cannot be read.
    """
    try:
        broken = cache.damaged(folder)
    except InputError:
        broken = [path.name for path in folder.glob("*.parquet")]
    for name in broken:
        (folder / name).unlink(missing_ok=True)
        kind, _, part = name.removesuffix(".parquet").partition("-")
        if kind == "rollouts":  # what was measured there was another response
            for other in cache.KINDS:
                cache.part_path(folder, other, int(part)).unlink(missing_ok=True)
    if broken:
        (folder / cache.RECORD).unlink()
    return broken


def run(
    folder: Path,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    selection: "Selection",
    source: Source,
    asked: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    advance: Advance = lambda *_: None,
    smaller: Callable[[int], None] = lambda _: None,
    lenses: "Mapping[str, Lens]" = MappingProxyType({}),
) -> dict[str, Any]:
    """Measure what is not whole yet and return the record, scan.json.

    Any number of processes may run the same scan in the same folder: a part is written whole or not at all, and who
    comes second takes it from the disk. `asked` and `facts` go into the record.
    """
    from internal_policy import product, scan
    from internal_policy.reader import reader_of
    from internal_policy.vocabulary import vocabulary

    weight = reader_of(model).unembedding.weight
    if not (folder / cache.ASKED).exists():
        chosen = product.choose(weight, weight.dtype)  # part of the record, so that a continued scan multiplies alike
        question = {"digest": cache.digest(asked), "asked": asked, "product": chosen}
        files.write_json(folder / cache.ASKED, question, once=True)
    chosen = cache.asked(folder)["product"]
    if chosen not in product.candidates(weight.dtype, weight.dtype, weight.device):
        raise InputError(f"{folder} was begun on another device; go on there, or give --output a new folder.")
    tokens = 0
    for part in source.parts:
        rollouts = _rollouts(folder, part, source)
        if not cache.is_whole(folder, part):
            scan.check(model, selection, rollouts, lenses)
            first = part * source.batch_size
            measured = scan.measure(
                model, rollouts, selection, first=first, product=chosen, smaller=smaller, lenses=lenses
            )
            for kind, table in zip(("policies", "layers"), measured, strict=True):
                cache.write_table(cache.part_path(folder, kind, part), table, group="rollout")
        length = sum(len(rollout.response_ids) for rollout in rollouts)
        tokens += length
        advance(len(rollouts), length)
    texts = pa.Table.from_pandas(vocabulary(tokenizer, len(weight)), preserve_index=False)
    cache.write_table(folder / cache.VOCABULARY, texts)
    names = [cache.part_path(folder, kind, part).name for part in source.parts for kind in cache.KINDS]
    record = {
        "schema": cache.SCHEMA,
        "digest": cache.digest(asked),
        **facts,
        "selection": asdict(selection),
        "product": chosen,
        "rollouts": source.rollouts,
        "tokens": tokens,
        "asked": asked,
        "files": {name: files.fingerprint(folder / name) for name in [cache.VOCABULARY, *names]},
    }
    files.write_json(folder / cache.RECORD, record)
    return record


def _rollouts(folder: Path, part: int, source: Source) -> Sequence["Rollout"]:
    from internal_policy.rollouts import from_table
    from internal_policy.scan import numbered

    path = cache.part_path(folder, "rollouts", part)
    if path.exists() and not cache.has_end(path):  # damaged since: what was measured may be of another response
        for kind in cache.KINDS:
            cache.part_path(folder, kind, part).unlink(missing_ok=True)
    if not path.exists():
        cache.write_table(path, numbered(source.batch(part), part * source.batch_size), group="rollout", once=True)
    return from_table(cache.read_part(path))
