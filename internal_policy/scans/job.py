"""Scan to a folder part by part, so that an interrupted scan continues where it stopped."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from internal_policy import files
from internal_policy.errors import InputError
from internal_policy.scans import records, store, versions
from internal_policy.scans.claims import claim as claim_folder
from internal_policy.scans.positions import recorded
from internal_policy.scans.shard import ALONE, Worker
from internal_policy.scans.sharing import Claims, claiming, meet, turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from internal_policy.scans.reader import Reader
    from internal_policy.scans.scan import Scanner
    from internal_policy.tasks.rollouts import Rollout

BY = ("device", "dtype", "versions")
"""Facts that may differ between processes that continue one scan; they are recorded for each part."""

Advance = Callable[[int, int], None]
"""Called with the numbers of rollouts and response tokens of each part when it is complete, in whichever process.

The number of tokens is 0 if an earlier run measured the part. The thread that writes parts makes these calls."""

OnPiece = Callable[[Sequence["Rollout"], pa.Table], None]
"""Called while a part is measured, with its rollouts and each piece of its table `policies`."""

Measured = Callable[[], tuple[pa.Table, pa.Table]]
"""Lays out the tables `policies` and `layers` of a part."""

PACKAGES = ("internal-policy", "torch", "transformers", "tokenizers")
"""Distributions whose versions are recorded."""


@dataclass(frozen=True)
class Source:
    """The source of a scan's rollouts, one batch per part."""

    rollouts: int
    """Number of rollouts."""
    batch_size: int
    """Rollouts in a part; the last part may have fewer."""
    batch: Callable[[int], Sequence["Rollout"]]
    """Generates or loads the rollouts of a part."""

    @property
    def parts(self) -> range:
        """The numbers of the parts."""
        return range(-(-self.rollouts // self.batch_size))


def facts(name: str, reader: "Reader", chat_template: str | None, packages: Sequence[str]) -> dict[str, Any]:
    """What the record says about a model and the program; `packages` are distributions besides PACKAGES."""
    from internal_policy.models import quantized
    from internal_policy.models.families import row_of

    model, text = reader.model, reader.model.config.get_text_config()
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": name,
        "family": model.config.model_type,
        "row": dict(zip(("name", "proved"), row_of(model.config), strict=True)),
        "n_layers": text.num_hidden_layers,
        "d_model": text.hidden_size,
        "d_vocab": text.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(reader.unembedding.weight.device),
        **quantized.facts(model),
        "chat_template": chat_template,
        "versions": versions.of((*PACKAGES, *packages)),
        "command": sys.argv,
    }


def claim(folder: Path, question: Mapping[str, Any]) -> None:
    """Raise InputError if a folder contains anything but this scan."""
    claim_folder(folder, store.ASKED, "scan", question)
    check_files(folder)


def check_files(folder: Path) -> None:
    """Raise InputError if a folder is in the place of a file of a scan."""
    for path in folder.glob("*"):
        if path.suffix in (".json", ".parquet") and path.is_dir():
            raise InputError(f"{path} is a folder; expected a file of the scan. Move or remove it.")


def run(
    folder: Path,
    scanner: "Scanner",
    tokenizer: "PreTrainedTokenizerBase",
    source: Source,
    asked: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    worker: Worker = ALONE,
    advance: Advance = lambda *_: None,
    smaller: Callable[[int], None] = lambda _: None,
    on_piece: OnPiece | None = None,
) -> dict[str, Any] | None:
    """Measure the parts of this worker that aren't complete yet. Once all parts are, return the record, scan.json.

    Any number of processes may run the same scan in the same folder, because each claims a part before it measures it.
    A worker that doesn't lead, or whose shard isn't all of the scan, returns None while others still have parts. A part
    is written while the next one is measured, and an error in writing it is raised before the next one is written.
    `asked` and `facts` go into the record.
    """
    with claiming(folder) as claims:
        scanner = _multiplying_alike(folder, scanner, asked)
        by = {name: facts[name] for name in BY}
        measure = partial(_measure, claims, scanner, source, by, worker.leads, smaller, on_piece)
        tokens = measure(worker.shard.parts(source.parts), advance)
        if not worker.leads:
            meet(claims, (folder / store.RECORD).exists)  # the process that leads waits there
            return None
        if worker.shard.count > 1:
            if not all(_is_measured(folder, part) for part in reversed(source.parts)):  # the last is usually done last
                return None
            tokens = measure(source.parts, lambda *_: None)  # only those that were damaged
        for _, mine in turns([store.RECORD], claims, lambda name: (folder / name).exists(), waits=True):
            if mine:
                claims.sweep()
                counts = {"rollouts": source.rollouts, "tokens": tokens}
                _close(folder, scanner, tokenizer, source.parts, {**facts, **counts, "asked": asked})
        return records.read(folder / store.RECORD)


def missing(folder: Path, parts: Sequence[int]) -> list[int]:
    """Those of `parts` that no process has measured."""
    return [part for part in parts if not _is_measured(folder, part)]


def _measure(
    claims: Claims,
    scanner: "Scanner",
    source: Source,
    by: Mapping[str, Any],
    leads: bool,
    smaller: Callable[[int], None],
    on_piece: OnPiece | None,
    parts: Sequence[int],
    advance: Advance,
) -> int:
    """Measure those of `parts` that no other process has; return the number of response tokens in complete parts.

    The process that leads waits for the other processes, and checks what they have written. For other processes the
    number only counts the parts that they measured.
    """
    folder, began, tokens = claims.folder, claims.mark.stat().st_mtime, 0
    is_done = partial(store.is_whole if leads else _is_measured, folder)

    def finish(part: int, measured: Measured, rollouts: int, length: int) -> None:
        for kind, table in zip(("policies", "layers"), measured(), strict=True):
            store.write_table(store.part_path(folder, kind, part), table, group="rollout")
        _write_about(folder, part, by, store.KINDS)
        claims.release(part)
        advance(rollouts, length)

    with ThreadPoolExecutor(1, "writer") as writer:  # leaving the block waits for the part that it writes
        finished: Future[None] = writer.submit(lambda: None)
        for part, mine in turns(parts, claims, is_done, waits=leads):
            if mine:
                rollouts = _rollouts(folder, part, source, by)
                measured = _measured(scanner, rollouts, part * source.batch_size, smaller, on_piece)
                length = scanner.tokens(len(rollout.response_ids) for rollout in rollouts)
                finished.result()  # raises what went wrong; at most one part waits in memory
                finished = writer.submit(finish, part, measured, len(rollouts), length)
            elif leads:
                lengths = store.read_part(store.part_path(folder, "rollouts", part), ["response_ids"])["response_ids"]
                length = scanner.tokens(map(len, lengths.to_pylist()))
                is_fresh = records.about_part(folder, part).stat().st_mtime >= began
                finished.result()
                finished = writer.submit(advance, len(lengths), length if is_fresh else 0)
            else:
                length = 0
            tokens += length
        finished.result()
    return tokens


def _measured(
    scanner: "Scanner",
    rollouts: Sequence["Rollout"],
    first: int,
    smaller: Callable[[int], None],
    on_piece: OnPiece | None,
) -> Measured:
    """A function that lays out the tables of a part, which is measured now; its first rollout is number `first`."""
    from internal_policy.scans.scan import check_rollouts

    check_rollouts(scanner.reader, rollouts)
    watch = None if on_piece is None else partial(on_piece, rollouts)
    return scanner.measured(rollouts, first, smaller, watch)


def _close(
    folder: Path,
    scanner: "Scanner",
    tokenizer: "PreTrainedTokenizerBase",
    parts: Sequence[int],
    facts: Mapping[str, Any],
) -> None:
    """Write the vocabulary and the record of a scan whose parts are complete. Raises InputError if it has no tokens."""
    if not facts["tokens"]:
        raise InputError(
            f"No response has a token at {scanner.selection.positions}, so nothing was measured. Choose earlier "
            "positions and another --output."
        )
    write_vocabulary(folder, tokenizer, len(scanner.kernel.weight))
    record = {
        "schema": store.SCHEMA,
        "digest": store.digest(facts["asked"]),
        **facts,
        "selection": recorded(scanner.selection),
        "lacking": scanner.lacking,
        **scanner.drawn,
        "product": scanner.kernel.matmul,
        **_of_parts(folder, parts),
    }
    records.write(folder / store.RECORD, record)


def write_vocabulary(folder: Path, tokenizer: "PreTrainedTokenizerBase", size: int) -> None:
    """Write the text of each of the `size` tokens of a model."""
    from internal_policy.models.vocabulary import vocabulary

    texts = pa.Table.from_pandas(vocabulary(tokenizer, size), preserve_index=False)
    store.write_table(folder / store.VOCABULARY, texts)


def renew(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a scan again, with its files as they are now. Raises InputError if one is missing."""
    records.write(folder / store.RECORD, {**record, **_of_parts(folder, range(records.count(record)))})


def _is_measured(folder: Path, part: int) -> bool:
    """Whether a part was measured, going by the notes on it alone."""
    known = records.of_part(folder, part)
    return known is not None and all(store.part_path(folder, kind, part).name in known["files"] for kind in store.KINDS)


def _multiplying_alike(folder: Path, scanner: "Scanner", asked: Mapping[str, Any]) -> "Scanner":
    """`scanner` with the matrix product that the scan in `folder` started with; a new scan records that of `scanner`.

    Raises InputError if that product can't be computed on this device.
    """
    from internal_policy.measure import choice

    kernel = scanner.kernel
    if not (folder / store.ASKED).exists():
        question = {"digest": store.digest(asked), "asked": asked, "product": kernel.matmul}
        records.write(folder / store.ASKED, question, once=True)
    name = store.asked(folder)["product"]
    if not choice.works(name, kernel.weight.dtype, kernel.weight.device):
        raise InputError(
            f"{folder} was started where policies are measured in another way ('{name}'), which doesn't work here. "
            "Continue it there, or choose another --output."
        )
    return replace(scanner, kernel=replace(kernel, matmul=name))


def _rollouts(folder: Path, part: int, source: Source, by: Mapping[str, Any]) -> Sequence["Rollout"]:
    """The rollouts of a part, from disk if it has them, else from the source."""
    from internal_policy.scans.scan import numbered
    from internal_policy.tasks.rollouts import from_table

    path, known = store.part_path(folder, "rollouts", part), records.of_part(folder, part)
    about, found = records.about_part(folder, part), files.fingerprint_once(path)
    sound = store.has_end(path) if known is None else found == known["files"].get(path.name)
    if not sound and (known or found):  # altered since: the measurements may belong to other responses
        for old in (about, *(store.part_path(folder, kind, part) for kind in store.KINDS)):
            old.unlink(missing_ok=True)
    elif known is None and about.exists():  # damaged
        about.unlink(missing_ok=True)
    if not path.exists():
        store.write_table(path, numbered(source.batch(part), part * source.batch_size), group="rollout", once=True)
    _write_about(folder, part, by, ["rollouts"], once=True)
    return from_table(store.read_part(path))


def _write_about(folder: Path, part: int, by: Mapping[str, Any], kinds: Sequence[str], *, once: bool = False) -> None:
    """Record the fingerprints of a part's files, and what wrote them."""
    known = records.of_part(folder, part)
    earlier = known["by"] if known else []
    paths = [store.part_path(folder, kind, part) for kind in kinds]
    about = {
        "files": {path.name: files.fingerprint_once(path) for path in paths},
        "by": [*earlier, *([] if by in earlier else [by])],
    }
    records.write(records.about_part(folder, part), about, once=once)


def _of_parts(folder: Path, parts: Sequence[int]) -> dict[str, Any]:
    """The record's fields about parts: their fingerprints, and the devices and versions that measured them.

    Raises InputError if a part's files were altered or removed while the scan ran.
    """
    known = [records.of_part(folder, part) if store.is_whole(folder, part) else None for part in parts]
    whole = [about for about in known if about is not None]
    written = {store.VOCABULARY: files.fingerprint(folder / store.VOCABULARY)}
    if len(whole) < len(known) or None in written.values():
        name = f"Part {known.index(None)}" if None in known else store.VOCABULARY
        raise InputError(f"{name} of {folder} was altered or removed while the scan ran. Run its command again.")
    by = [one for about in whole for one in about["by"]]
    written |= {name: found for about in whole for name, found in about["files"].items()}
    return {
        "files": written,
        "footers": {name: files.footer(folder / name) for name in written},
        "device": ", ".join(dict.fromkeys(one["device"] for one in by)),
        "dtype": ", ".join(dict.fromkeys(one["dtype"] for one in by)),
        "versions": {
            name: ", ".join(dict.fromkeys(one["versions"][name] for one in by if name in one["versions"]))
            for name in dict.fromkeys(name for one in by for name in one["versions"])
        },
    }
