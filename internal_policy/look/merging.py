"""Put the shards of a scan together."""

from collections.abc import Sequence
from itertools import pairwise

import pyarrow as pa

from internal_policy.errors import InputError
from internal_policy.look.scan import Scan, of
from internal_policy.scans.store import Tables

OWN = ("shard", "rollouts", "tokens", "device")
"""Fields of a shard's record that may differ from those of the others."""


def merge(scans: Sequence[Scan]) -> Scan:
    """Put the shards of a scan in memory together, in any order. The result equals the scan of a single process.

        def measure(i):                                                # in a process of its own
            model, tokenizer = ip.load("Qwen/Qwen3-4B", device=f"cuda:{i}")
            return ip.scan(model, tokenizer, "responses.jsonl", shard=(i, 4))

        with multiprocessing.get_context("spawn").Pool(4) as pool:
            scan = ip.merge(pool.map(measure, range(4)))

    On disk there is nothing to merge: shards of `internal-policy scan --shard` share one folder. Raises InputError for
    a scan that isn't a shard, shards with different options or models, and shards that are missing or given twice.
    """
    shards = [scan.source for scan in scans if isinstance(scan.source, Tables) and "shard" in scan.source.record]
    if not shards or len(shards) < len(scans):
        raise InputError("merge takes scans in memory that were made with shard=(i, n). Give a list of those.")
    records = [{name: value for name, value in shard.record.items() if name not in OWN} for shard in shards]
    if different := [name for record in records for name in record if record[name] != records[0].get(name)]:
        raise InputError(f"The shards differ in {different[0]}. Make all with the same model, texts and options.")
    rollouts = _together(shards, "rollouts")
    numbers, total = rollouts["rollout"].to_pylist(), records[0].pop("all_rollouts")
    if twice := [number for number, after in pairwise(numbers) if number == after]:
        raise InputError(f"Rollout {twice[0]} is in more than one of the shards. Give each shard once.")
    if missing := sorted({*range(total)} - {*numbers}):
        given = ", ".join(shard.record["shard"] for shard in shards)
        raise InputError(f"Rollout {missing[0]} is in none of the shards {given}. Give all of them.")
    record = {
        **records[0],
        "device": ", ".join(dict.fromkeys(shard.record["device"] for shard in shards)),
        "rollouts": total,
        "tokens": sum(shard.record["tokens"] for shard in shards),
    }
    others = {kind: _together(shards, kind) for kind in ("policies", "layers")}
    return of(Tables(record, {"rollouts": rollouts, **others, "vocabulary": shards[0].arrow["vocabulary"]}))


def _together(shards: Sequence[Tables], kind: str) -> pa.Table:
    """A table of all shards, rollout by rollout; rows of one rollout keep their order."""
    return pa.concat_tables([shard.arrow[kind] for shard in shards]).sort_by("rollout")
