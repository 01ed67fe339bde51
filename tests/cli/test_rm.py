"""Removing scans, training runs and evaluations."""

import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from internal_policy import bundle, files
from internal_policy.__main__ import main
from internal_policy.cli import evaluate, inventory, removal
from internal_policy.cli.inventory import Item
from internal_policy.errors import InputError
from internal_policy.look import runs
from internal_policy.look.samples import SAMPLES
from internal_policy.scans import records, store
from internal_policy.scans.scan import Scanner
from internal_policy.train import checkpoints
from internal_policy.train import run as training
from internal_policy.train.callbacks import ScanSchedule
from internal_policy.train.card import as_yaml
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.run import ROLLOUTS, STAGES

DEMO, RUN = bundle.DATA / "scans" / "demo-qwen3", bundle.DATA / "experiments" / "bupo"
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def scan(here) -> Path:
    """A scan in the cache, with a temporary file of a killed process."""
    folder = Path(shutil.copytree(DEMO, store.root() / "demo-qwen3" / "3fa900000000"))
    (folder / f".internal-policy-{files.HERE}-99999999-00000000.parquet").touch()
    return folder


@pytest.fixture
def training_run(here) -> Path:
    """A training run in the cache, with every file that training writes."""
    folder = Path(shutil.copytree(RUN, store.root() / "runs" / "demo-qwen3-bupo-a1b2c3"))
    records.write(folder / runs.RECORD, {"model": "demo-qwen3", "method": "bupo", "identity": "sha256 0"})
    for name in (STAGES, ROLLOUTS, "README.md", f"{checkpoints.PARTIAL}/half"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    for name in (runs.EXAMS, SAMPLES):
        store.write_table(folder / name, pa.table({"step": [0]}))
    for name in ("checkpoint-20", "best", "model"):
        (folder / name / "adapter").mkdir(parents=True)
        (folder / name / "adapter" / "model.safetensors").write_bytes(b"weights")
        checkpoints.seal(folder / name)
    return folder


class Answers(io.StringIO):
    """A terminal whose person types this."""

    def isatty(self) -> bool:
        return True


def test_a_scan_is_removed_with_all_its_files_and_the_empty_folder_of_its_model(scan, capsys):
    assert main(["rm", "3fa9", "--yes"]) == 0
    assert not scan.parent.exists()
    said = capsys.readouterr().err
    assert said.startswith("Removed 3fa900000000: scan of demo-qwen3, 20 rollouts, ")


@pytest.mark.parametrize("model", ["finished", "interrupted"])
def test_a_training_run_is_removed_with_its_model_and_checkpoints(model, training_run, capsys):
    if model == "interrupted":
        (training_run / "model" / checkpoints.MANIFEST).unlink()
    assert main(["rm", "runs/demo-qwen3-bupo-a1b2c3", "-y"]) == 0
    assert not training_run.exists()
    assert "36 steps, 1 checkpoint, " in capsys.readouterr().err


def test_a_training_run_is_not_removed_by_the_beginning_of_its_name(training_run, capsys):
    assert main(["rm", "runs/demo-qwen3-bupo", "--yes"]) == 2
    assert "Type its whole name to remove it." in capsys.readouterr().err
    assert training_run.exists()


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_on_a_terminal_only_yes_removes(answer, code, scan, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Answers(answer))
    assert main(["rm", "3fa9"]) == code
    said = capsys.readouterr().err
    assert said.startswith("3fa900000000: scan of demo-qwen3, 20 rollouts, ")
    assert "Remove this? [y/N]" in said
    assert scan.exists() == (code == 1)
    assert ("Nothing was removed." in said) == (code == 1)


def test_without_a_terminal_nothing_is_removed_unless_yes_is_given(scan, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(["rm", "3fa9"]) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert scan.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("demo-qwen3", "demo-qwen3 comes with the package and can't be removed."),
        (str(DEMO), "comes with the package"),
        (str(RUN), "experiments/bupo comes with the package"),
        (".", "There is no scan, training run or evaluation in ."),
        ("3", "'3' could be 3f.*00000000 or 3f.*00000000. Type more of the name."),
        ("nothing", "There is no scan, training run or evaluation 'nothing'"),
    ],
)
def test_what_cant_be_removed_is_refused_before_anything_is(name, said, scan, capsys):
    shutil.copytree(DEMO, other := store.root() / "demo-qwen3" / "3fb100000000")
    assert main(["rm", "3fb1", name, "--yes"]) == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))
    assert other.exists()


@pytest.mark.parametrize("name", [".", "nope"])
def test_only_what_can_be_removed_is_offered(name, scan, capsys):
    assert main(["rm", name, "--yes"]) == 2
    said = capsys.readouterr().err
    assert "Choose one of 3fa900000000; `internal-policy ls`" in said.replace("\n", " ")
    assert "demo-qwen3," not in said
    shutil.rmtree(scan)
    assert main(["rm", name, "--yes"]) == 2
    assert "There is nothing to remove." in capsys.readouterr().err


def test_rm_of_nothing_is_refused(capsys):
    assert main(["rm"]) == 2
    assert "No scan is named" in capsys.readouterr().err


def test_files_of_others_stay_and_are_named(scan, training_run, capsys):
    notes, weights = scan / "notes.txt", training_run / "model" / "model.gguf"
    for path in (notes, weights):
        path.touch()
    assert main(["rm", "3fa9", "demo-qwen3-bupo-a1b2c3", "--yes", "--json"]) == 0
    done = capsys.readouterr()
    assert [row["kept"] for row in json.loads(done.out)] == [[str(notes)], [str(weights)]]
    assert "because internal-policy didn't write it: notes.txt." in done.err
    assert [path for folder in (scan, training_run) for path in folder.rglob("*") if path.is_file()] == [notes, weights]


def test_an_empty_folder_that_internal_policy_did_not_make_stays(here, training_run):
    folder = Path(shutil.copytree(DEMO, here / "mine"))
    refs = [folder / ".git" / "refs" / "tags", training_run / "plots" / "new"]
    for path in refs:
        path.mkdir(parents=True)
    assert main(["rm", str(folder), "demo-qwen3-bupo-a1b2c3", "--yes"]) == 0
    assert all(path.is_dir() for path in refs)
    assert [path.name for path in folder.iterdir()] == [".git"]
    assert [path.name for path in training_run.iterdir()] == ["plots"]


def test_an_empty_folder_of_the_user_in_a_folder_of_ours_stays_under_its_name(training_run):
    (training_run / "model" / "mine").mkdir()
    assert main(["rm", "demo-qwen3-bupo-a1b2c3", "--yes"]) == 0
    assert [path.name for path in training_run.parent.iterdir()] == [training_run.name]
    assert [*training_run.rglob("*")] == [training_run / "model", training_run / "model" / "mine"]


def test_files_of_the_user_stay_even_if_they_are_called_as_those_of_a_scan(here, capsys):
    folder = Path(shutil.copytree(DEMO, here / "mine"))
    theirs = {"layers-00099.parquet": b"notes", "part-00077.json": b'{"a": 1}', ".notes.lock": b""}
    for name, text in theirs.items():
        (folder / name).write_bytes(text)
    (folder / "rollouts-00088.parquet").write_bytes((folder / "rollouts-00000.parquet").read_bytes())
    assert main(["rm", "mine", "--yes"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == theirs
    assert "layers-00099.parquet" in capsys.readouterr().err


def test_an_unfinished_scan_outside_the_cache_is_removed_whole(here):
    folder = Path(shutil.copytree(DEMO, here / "mine"))
    (folder / store.RECORD).unlink()
    records.write(folder / "part-00000.json", {"files": {}, "by": []})
    assert main(["rm", "mine", "--yes"]) == 0
    assert not folder.exists()


def test_a_training_run_outside_the_cache_is_removed_whole(here, training_run):
    folder = training_run.rename(here / "mine")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\ntags: [trl]\n---\n")
    records.write(folder / STAGES, {"target": 3, "problems": 32})
    (folder / ROLLOUTS).write_bytes((DEMO / "rollouts-00000.parquet").read_bytes())
    (folder / "runs" / "Nov25").mkdir(parents=True)
    (folder / "runs" / "Nov25" / "events.out.tfevents.1.host").touch()
    assert main(["rm", "mine", "--yes"]) == 0
    assert not folder.exists()


def test_only_our_files_count_as_its_size_and_few_others_are_named(here, capsys):
    folder = Path(shutil.copytree(DEMO, here / "mine"))
    ours = sum(path.stat().st_size for path in folder.iterdir())
    for number in range(9):
        (folder / f"photos-{number}" / "deep").mkdir(parents=True)
        (folder / f"photos-{number}" / "deep" / "cat.png").write_bytes(b"x" * 100_000)
    assert main(["rm", "mine", "--yes", "--json"]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out)[0]["bytes"] == ours
    assert done.err.replace("\n", " ").count("photos-") == 5
    assert "and 4 more." in done.err


@pytest.mark.parametrize("name", ["scan.json", "metrics.parquet", evaluate.ASKED])
def test_a_folder_of_another_program_is_refused(name, here, capsys):
    (here / "theirs" / "model").mkdir(parents=True)
    (here / "theirs" / name).write_text("{}")
    assert main(["rm", "theirs", "--yes"]) == 2
    assert "may not be from internal-policy. Remove it by hand" in capsys.readouterr().err.replace("\n", " ")
    assert (here / "theirs" / name).exists()


def test_a_scan_outside_the_cache_is_removed_by_its_folder_and_the_folder_around_it_stays(here):
    folder = shutil.copytree(DEMO, here / "mine" / "scan")
    assert main(["rm", str(folder), "--yes"]) == 0
    assert [path.name for path in here.iterdir()] == ["mine"]


def test_a_link_to_a_scan_is_refused(scan, here, capsys):
    (here / "link").symlink_to(scan)
    assert main(["rm", "link", "--yes"]) == 2
    assert f"link is a link. Name {scan} instead." in capsys.readouterr().err.replace("\n", " ")
    assert scan.exists()


def test_a_broken_scan_in_the_cache_is_removed(scan):
    (scan / store.RECORD).write_text("[]")
    assert main(["rm", "3fa9", "--yes"]) == 0
    assert not scan.exists()


def test_a_scan_that_a_process_is_writing_is_refused(scan, capsys):
    with files.held(scan):
        assert main(["rm", "3fa9", "--yes"]) == 2
    assert "3fa900000000 is being written by process " in capsys.readouterr().err
    assert scan.exists()


def test_a_scan_is_held_while_it_is_sampled_and_measured(asked, here, monkeypatch, capsys):
    measure, codes = Scanner.measured, []

    def tried(self: Scanner, *given: Any):
        codes.append(main(["rm", "mine", "--yes"]))
        return measure(self, *given)

    monkeypatch.setattr(Scanner, "measured", tried)
    assert main([*asked, "--output", "mine"]) == 0
    assert codes == [2, 2, 2]
    assert main(["rm", "mine", "--yes"]) == 0


def test_a_resolved_configuration_is_ours_and_another_one_is_not(tmp_path):
    item, path = Item("run", tmp_path, "run"), tmp_path / "config.yaml"
    for text, ours in ((as_yaml(BuPOConfig(output_dir=str(tmp_path), use_cpu=True)), True), ("seed: 1", False)):
        path.write_text(text)
        assert removal._is_ours(path, item) == ours


def test_a_training_run_is_held_while_it_trains(tmp_path, llama, tokenizer, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(training, "_trained", lambda setup, *_: seen.extend(files.writers(setup.folder)))
    setup = training.Setup(tmp_path / "run", llama, tokenizer, [], None, [], {})
    config, scans = BuPOConfig(output_dir=str(tmp_path)), ScanSchedule([], None, 0)
    training.train(setup, config, scans, None, lambda _: None, lambda _: None)
    assert seen == [f"process {os.getpid()}"]
    assert files.writers(setup.folder) == []


def test_a_process_that_begins_to_write_at_the_last_moment_keeps_its_files(scan, monkeypatch):
    rename = Path.rename

    def begun(self: Path, target: Path) -> Path:
        (self / f".internal-policy-{files.HERE}-1-00000000.working").touch()
        return rename(self, target)

    before = {path.name for path in scan.iterdir()}
    monkeypatch.setattr(Path, "rename", begun)
    with pytest.raises(InputError, match="is being written by process 1"):
        removal.remove(inventory.find("3fa9"))
    assert before < {path.name for path in scan.iterdir()}


def test_unfinished_scans_and_samples_are_removed_and_all_else_stays(scan, training_run, capsys):
    left = Path(shutil.copytree(DEMO, store.root() / "demo-qwen3" / "3fb100000000"))
    busy = Path(shutil.copytree(DEMO, store.root() / "demo-qwen3" / "3fb200000000"))
    for folder in (left, busy):
        (folder / store.RECORD).unlink()
    (training_run / "model" / checkpoints.MANIFEST).unlink()
    sample = store.root() / "rollouts" / "0badc0ffee00"
    (sample / "0").mkdir(parents=True)
    shutil.copy(DEMO / "rollouts-00000.parquet", sample / "0")
    with files.held(busy):
        assert main(["rm", "--unfinished", "--yes"]) == 0
    assert [path.exists() for path in (left, sample, busy, scan, training_run)] == [False, False, True, True, True]
    assert "rollouts/0badc0ffee00: unfinished sample, 8 rollouts" in capsys.readouterr().err


def test_rm_unfinished_says_if_there_is_nothing(scan, capsys):
    assert main(["rm", "--unfinished"]) == 0
    assert capsys.readouterr().err == "There is nothing unfinished to remove.\n"
