"""Scans measured to a folder part by part: a part is written in the background while the next one is measured."""

import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from conftest import random_rollout, tiny_model

from internal_policy.scans import job, store
from internal_policy.scans.scan import Scanner
from internal_policy.scans.selection import Selection

ROLLOUTS = [random_rollout(3, 4 + seed, seed) for seed in range(5)]
PATIENCE = 20
"""Seconds."""


@dataclass
class Scanning:
    """Runs a scan of `ROLLOUTS`, 2 in a part, in a folder."""

    folder: Path
    scanner: Scanner
    tokenizer: Any

    def run(self, **callbacks: Any) -> dict[str, Any]:
        source = job.Source(len(ROLLOUTS), 2, lambda part: ROLLOUTS[2 * part : 2 * part + 2])
        facts = job.facts("m", self.scanner.reader.model, None, [])
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
    write, measure, second = store.write_table, Scanner.measure, Event()

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
    monkeypatch.setattr(Scanner, "measure", measured)
    scanning.run()
    assert not store.damaged(scanning.folder)


def test_at_most_one_measured_part_waits_to_be_written(scanning, monkeypatch):
    write, measure = store.write_table, Scanner.measure
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
    monkeypatch.setattr(Scanner, "measure", measuring)
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
