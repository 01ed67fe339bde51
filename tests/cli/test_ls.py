"""Listing scans, training runs and evaluations."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_record
from rich.cells import cell_len

from internal_policy import bundle, files
from internal_policy.__main__ import main
from internal_policy.cli import contents, evaluate, inventory, ls
from internal_policy.cli.console import Terminal
from internal_policy.look import runs
from internal_policy.scans import records, store
from internal_policy.train import checkpoints

DEMO, RUN = bundle.DATA / "scans" / "demo-qwen3", bundle.DATA / "experiments" / "bupo"
DIGEST = json.loads((DEMO / store.RECORD).read_text())["digest"]
pytestmark = pytest.mark.usefixtures("here")


def scan(name: str = "3fa900000000", *, whole: bool = True) -> Path:
    """A copy of the bundled scan in the cache, unfinished if it isn't whole."""
    folder = Path(shutil.copytree(DEMO, store.root() / "demo-qwen3" / name))
    if not whole:
        (folder / store.RECORD).unlink()
    return folder


def training_run(*, whole: bool = True) -> Path:
    """A training run with a checkpoint, and a model if it is whole."""
    folder = Path(shutil.copytree(RUN, store.root() / "runs" / "a-model-bupo-a1b2c3"))
    records.write(folder / runs.RECORD, {"model": "some/a-model", "method": "bupo", "problems": None})
    for name in ["checkpoint-20", *(["model"] if whole else [])]:
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"weights")
        checkpoints.seal(folder / name)
    return folder


def rows(capsys) -> dict[str, dict]:
    """What `ls --json` lists of the cache, by name."""
    assert main(["ls", "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out) if not row["bundled"]}


def test_an_empty_cache_lists_what_comes_with_the_package_and_the_first_command(capsys):
    assert main(["ls"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("demo-qwen3", "demo-llama", "experiments/bupo", "experiments/grpo"))
    assert f"Cache: {store.root()}, 0.0 kB" in printed
    assert "To add a scan, run `internal-policy scan`" in printed


def test_a_scan_is_listed_with_its_model_reader_readouts_source_and_size(capsys):
    folder = scan()
    row = rows(capsys)["3fa900000000"]
    expected = {
        "kind": "scan",
        "model": "demo-qwen3",
        "reader": "hooks",
        "readouts": ["raw", "norm"],
        "source": "data/problems/heldout.jsonl",
        "rollouts": 20,
        "tokens": 819,
        "state": "finished",
        "problem": None,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }
    assert {name: row[name] for name in expected} == expected


def test_a_scan_of_texts_is_listed_with_their_number(capsys):
    folder = scan(whole=False)
    records.write(
        folder / store.ASKED, {"digest": "x", "product": "plain", "asked": {"model": "m", "text": ["a", "b"]}}
    )
    assert rows(capsys)["3fa900000000"]["source"] == "2 texts"


def test_a_list_reads_the_record_of_each_scan_once(capsys, monkeypatch):
    read, counted = records.read, Counter()
    monkeypatch.setattr(records, "read", lambda path: counted.update([path]) or read(path))
    scans = [scan(f"3fa90000000{number}") for number in range(3)]
    rows(capsys)
    assert [counted[folder / store.RECORD] for folder in scans] == [1, 1, 1]


def test_an_unfinished_scan_is_listed_with_the_rollouts_it_has(capsys):
    folder = scan(whole=False)
    names = [store.part_path(folder, kind, 1).name for kind in store.KINDS]
    records.write(
        records.about_part(folder, 1), {"files": {key: {"bytes": 1, "sha256": "0" * 64} for key in names}, "by": []}
    )
    row = rows(capsys)["3fa900000000"]
    assert (row["state"], row["rollouts"], row["rollouts_at_most"]) == ("unfinished", 8, 20)
    assert row["problem"] == "It has 8 rollouts of up to 20. Run its scan command again to finish it."


def test_a_scan_that_a_process_is_writing_is_listed_as_running(capsys):
    with files.held(scan(whole=False)):
        row = rows(capsys)["3fa900000000"]
    assert row["state"] == "running"
    assert row["problem"] == f"It has 0 rollouts of up to 20. Process {os.getpid()} is writing to it."


def test_a_scan_with_a_missing_file_is_listed_as_broken_with_the_remedy(capsys):
    folder = scan()
    (folder.rename(folder.with_name(DIGEST)) / "layers-00001.parquet").unlink()
    row = rows(capsys)[DIGEST]
    assert (row["state"], row["model"]) == ("broken", "demo-qwen3")
    remedy = f"Repair it with `internal-policy verify {DIGEST} --repair`."
    assert row["problem"] == f"layers-00001.parquet is missing or cut short. {remedy}"


@pytest.mark.parametrize(("whole", "state"), [(True, "finished"), (False, "unfinished")])
def test_a_training_run_is_finished_when_its_model_is_whole(whole, state, capsys):
    folder = training_run(whole=whole)
    row = rows(capsys)["runs/a-model-bupo-a1b2c3"]
    assert (row["state"], row["steps"], row["targets"], row["checkpoints"]) == (state, 36, ["6.resid_post"], 1)
    assert row["trained_model"] == (str(folder / "model") if whole else None)
    remedy = "It has done 36 steps and has saved checkpoint-20. Run its train command again, with --resume."
    assert row["problem"] == (None if whole else remedy)


@pytest.mark.parametrize(
    ("folder", "name", "said"),
    [
        ("model/3fa9", store.ASKED, "asked.json is damaged"),
        ("runs/mine", runs.RECORD, "run.json is damaged"),
        ("evaluations/77aa", evaluate.ASKED, "evaluation.json is damaged"),
    ],
)
def test_settings_that_cant_be_read_are_listed_as_broken(folder, name, said, capsys):
    (store.root() / folder).mkdir(parents=True)
    (store.root() / folder / name).write_text("[]")
    (row,) = rows(capsys).values()
    assert row["state"] == "broken"
    assert row["problem"].startswith(said)


def test_an_evaluation_without_its_responses_is_broken(capsys):
    folder = store.root() / "evaluations" / "77aa"
    folder.mkdir(parents=True)
    records.write(folder / evaluate.ASKED, {"digest": "x", "asked": {"model": "m"}})
    (row,) = rows(capsys).values()
    assert row["problem"] == "rollouts.parquet is missing or damaged. Remove it and evaluate again."


def test_an_unfinished_sample_is_listed_with_its_responses(capsys):
    folder = store.root() / "rollouts" / "0badc0ffee00" / "0"
    folder.mkdir(parents=True)
    shutil.copy(DEMO / "rollouts-00000.parquet", folder)
    (row,) = rows(capsys).values()
    assert (row["name"], row["kind"], row["rollouts"]) == ("rollouts/0badc0ffee00", "sample", 8)


def test_without_a_terminal_nothing_is_shortened(capsys):
    folder = scan()
    write_record(folder, model="a-model-with-a-very-long-name-" * 4)
    assert main(["ls"]) == 0
    assert "a-model-with-a-very-long-name-" * 4 in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("kind", ls.KINDS)
def test_a_list_fits_the_terminal_without_cutting_a_name(kind, width):
    name = "runs/Qwen3-4B-Instruct-2507-bupo-d82339" if kind == "run" else "3fa900000000"
    row = contents.described(inventory.Item("scan", DEMO, "demo-qwen3", bundled=True))
    row |= {"kind": kind, "name": name, "model": "org/数学-Instruct-2507", "reader": "transformer-lens", "steps": 120}
    row |= {"source": "HuggingFaceH4/MATH-500@test", "targets": ["6.resid_post"], "at": "5.attn_out"}
    title, columns = ls.KINDS[kind]
    terminal = Terminal(width=width, record=True, file=None)
    with terminal.capture() as captured:
        terminal.print(ls.listed(title, columns, [row], width), soft_wrap=True)
    lines = captured.get().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert lines[-1].startswith(f"{name}  ")


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0.0 kB"), (1500, "1.5 kB"), (12_345_678, "12.3 MB"), (4_200_000_000, "4.2 GB")]
)
def test_a_size_has_a_unit_that_fits(number, said):
    assert ls.size(number) == said
