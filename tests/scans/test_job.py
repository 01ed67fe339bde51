"""Scans measured to a folder part by part: a part is written in the background while the next one is measured."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier, Event, current_thread
from typing import Any

import pytest
from conftest import random_rollout, tiny_model

from internal_policy.errors import InputError
from internal_policy.scans import job, records, sharing, store
from internal_policy.scans import scan as scan_module
from internal_policy.scans.scan import Scanner
from internal_policy.scans.selection import Selection
from internal_policy.scans.shard import Shard, Worker

ROLLOUTS = [random_rollout(3, 4 + seed, seed) for seed in range(5)]
PATIENCE = 20
"""Seconds."""


@dataclass
class Scanning:
    """Runs a scan of `ROLLOUTS`, 2 in a part, in a folder."""

    folder: Path
    scanner: Scanner
    tokenizer: Any

    def run(self, **callbacks: Any) -> Any:
        source = job.Source(len(ROLLOUTS), 2, lambda part: ROLLOUTS[2 * part : 2 * part + 2])
        facts = job.facts("m", self.scanner.reader, None, [])
        return job.run(self.folder, self.scanner, self.tokenizer, source, {}, facts, **callbacks)


@pytest.fixture
def scanning(tmp_path, tokenizer) -> Scanning:
    model = tiny_model("llama").float()
    return Scanning(tmp_path / "scan", Scanner.of(model, Selection((0, 1))), tokenizer)


def test_files_are_those_of_parts_measured_and_written_one_after_another(scanning, tmp_path):
    scanning.run()
    for part in range(3):
        measured = scanning.scanner.measure(ROLLOUTS[2 * part : 2 * part + 2], 2 * part)
        for kind, table in zip(("policies", "layers"), measured, strict=True):
            store.write_table(tmp_path / "alone", table, group="rollout")
            assert store.part_path(scanning.folder, kind, part).read_bytes() == (tmp_path / "alone").read_bytes()


def test_a_part_is_written_while_the_next_is_measured(scanning, monkeypatch):
    write, measure, second = store.write_table, Scanner.measured, Event()

    def waiting(path, *rest, **options):
        if path.name == "policies-00000.parquet":
            assert second.wait(PATIENCE)
        write(path, *rest, **options)

    def measured(scanner, rollouts, first, *rest):
        if first == 2:
            assert not store.is_whole(scanning.folder, 0)
            second.set()
        return measure(scanner, rollouts, first, *rest)

    monkeypatch.setattr(store, "write_table", waiting)
    monkeypatch.setattr(Scanner, "measured", measured)
    scanning.run()
    assert not store.damaged(scanning.folder)


def test_the_thread_that_writes_a_part_lays_out_its_tables(scanning, monkeypatch):
    lay_out, threads = scan_module.policies_table, []

    def noted(*given):
        threads.append(current_thread().name)
        return lay_out(*given)

    monkeypatch.setattr(scan_module, "policies_table", noted)
    scanning.run()
    assert threads == ["writer_0"] * 3


def test_at_most_one_measured_part_waits_to_be_written(scanning, monkeypatch):
    write, measure = store.write_table, Scanner.measured
    written, measured = [], []

    def counted(path, *rest, **options):
        time.sleep(0.2 if path.name == "policies-00000.parquet" else 0)
        write(path, *rest, **options)
        written.append(path.name)

    def measuring(scanner, rollouts, first, *rest):
        if first == 4:
            assert "layers-00000.parquet" in written
        measured.append(first)
        return measure(scanner, rollouts, first, *rest)

    monkeypatch.setattr(store, "write_table", counted)
    monkeypatch.setattr(Scanner, "measured", measuring)
    scanning.run()
    assert measured == [0, 2, 4]


def test_progress_counts_whole_parts_in_order(scanning):
    found = []

    def advance(rollouts, tokens):
        assert store.is_whole(scanning.folder, len(found))
        found.append((rollouts, tokens))

    scanning.run(advance=advance)
    assert found == [(2, 4 + 5), (2, 6 + 7), (1, 8)]
    found.clear()
    (scanning.folder / "part-00001.json").unlink()
    scanning.run(advance=advance)
    assert found == [(2, 0), (2, 6 + 7), (1, 0)]


def test_an_error_while_writing_the_last_part_is_raised(scanning, monkeypatch):
    write = store.write_table

    def full(path, *rest, **options):
        if path.name == "layers-00002.parquet":
            raise OSError(28, "No space left on device", str(path))
        write(path, *rest, **options)

    monkeypatch.setattr(store, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        scanning.run()
    assert [store.is_whole(scanning.folder, part) for part in range(3)] == [True, True, False]
    assert not (scanning.folder / store.RECORD).exists()


def test_an_interruption_leaves_the_part_in_writing_whole(scanning, monkeypatch):
    write, interrupted = store.write_table, Event()

    def waiting(path, *rest, **options):
        if path.name == "policies-00000.parquet":
            assert interrupted.wait(PATIENCE)
        write(path, *rest, **options)

    def on_piece(rollouts, _):
        if rollouts[0] == ROLLOUTS[2]:
            interrupted.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_table", waiting)
    with pytest.raises(KeyboardInterrupt):
        scanning.run(on_piece=on_piece)
    assert [store.is_whole(scanning.folder, part) for part in range(2)] == [True, False]


@contextmanager
def leading(folder: Path) -> Iterator[None]:
    """While open, a process on another machine is in a folder."""
    mark = folder / ".internal-policy-00000000-1-00000000.working"
    mark.touch()
    yield
    mark.unlink()


def test_a_process_that_nobody_leads_has_a_folder_of_its_own(scanning, monkeypatch):
    monkeypatch.setattr(sharing, "ABSENCE", 0.0)
    with pytest.raises(InputError, match=r"No other process is working in .* Processes on several machines must share"):
        scanning.run(worker=Worker(Shard(), 1, 2))


def content(folder: Path) -> dict[str, bytes]:
    """Every table of a scan."""
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """The first rollout of each part, as they are measured."""
    measure, seen = Scanner.measured, []

    def counted(scanner, rollouts, first, *rest):
        seen.append(first)
        return measure(scanner, rollouts, first, *rest)

    monkeypatch.setattr(Scanner, "measured", counted)
    return seen


def test_shards_measure_each_part_once_and_the_last_to_finish_closes_the_scan(scanning, measured, tmp_path):
    scanning.run()
    whole = content(scanning.folder)
    shared = replace(scanning, folder=tmp_path / "shared")
    measured.clear()
    found = []
    assert shared.run(worker=Worker(Shard(1, 3)), advance=lambda *counts: found.append(counts)) is None
    assert (measured, found) == ([2], [(2, 6 + 7)])
    assert job.missing(shared.folder, range(3)) == [0, 2]
    assert shared.run(worker=Worker(Shard(0, 3))) is None
    record = shared.run(worker=Worker(Shard(2, 3)))
    assert record["tokens"] == sum(len(rollout.response_ids) for rollout in ROLLOUTS)
    assert measured == [2, 0, 4]
    assert content(shared.folder) == whole
    assert not store.damaged(shared.folder)


def test_a_run_without_a_shard_finishes_what_shards_left(scanning, measured):
    assert scanning.run(worker=Worker(Shard(3, 4))) is None  # there is no fourth part
    assert scanning.run(worker=Worker(Shard(1, 2))) is None
    assert scanning.run()["rollouts"] == 5
    assert measured == [2, 0, 4]


def test_the_shard_that_closes_a_scan_measures_a_damaged_part_of_another_again(scanning, tmp_path):
    scanning.run()
    shared = replace(scanning, folder=tmp_path / "shared")
    shared.run(worker=Worker(Shard(0, 2)))
    part = store.part_path(shared.folder, "policies", 0)
    part.write_bytes(part.read_bytes()[:-100])
    assert shared.run(worker=Worker(Shard(1, 2)))
    assert content(shared.folder) == content(scanning.folder)


def test_a_process_that_follows_takes_what_is_free_and_closes_nothing(scanning, measured):
    with sharing.claiming(scanning.folder), leading(scanning.folder):
        assert scanning.run(worker=Worker(Shard(), 1, 2)) is None
    assert measured == [0, 2, 4]
    found = []
    assert scanning.run(worker=Worker(Shard(), 0, 2), advance=lambda *counts: found.append(counts))
    assert found == [(2, 0), (2, 0), (1, 0)]
    assert measured == [0, 2, 4]


def test_two_processes_with_one_question_measure_each_part_once(scanning, measured, tmp_path, monkeypatch):
    scanning.run()
    shared = replace(scanning, folder=tmp_path / "shared")
    other = replace(shared, scanner=Scanner.of(tiny_model("llama").float(), Selection((0, 1))))
    measured.clear()
    both, counts = Barrier(2), []

    def begun(*_):
        if len(measured) <= 2:
            both.wait(PATIENCE)  # neither finishes its first part before the other begins one

    with ThreadPoolExecutor() as pool:
        advance = lambda *found: counts.append(found)  # noqa: E731
        monkeypatch.setattr(sharing, "GLANCE", 0.01)
        runs = [pool.submit(one.run, on_piece=OnceEach(begun), advance=advance) for one in (shared, other)]
        records = [run.result(PATIENCE) for run in runs]
    assert sorted(measured) == [0, 2, 4]
    assert records[0] == records[1]
    assert content(shared.folder) == content(scanning.folder)
    fresh = [(rollouts, tokens) for rollouts, tokens in counts if tokens]
    assert sorted(fresh) == sorted(2 * [(2, 4 + 5), (2, 6 + 7), (1, 8)])  # both bars count all parts


class OnceEach:
    """Calls a function the first time it is called."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call: Callable[..., None] | None = call

    def __call__(self, *given: Any) -> None:
        call, self.call = self.call, None
        if call is not None:
            call(*given)


def test_a_scan_that_was_started_with_another_kernel_is_refused_by_its_name(scanning):
    question = {"digest": store.digest({}), "asked": {}, "product": "fused"}
    scanning.folder.mkdir()
    records.write(scanning.folder / store.ASKED, question, once=True)
    with pytest.raises(InputError, match=r"measured in another way \('fused'\), which doesn't work here\. Continue it"):
        scanning.run()
