"""Where commands write: an existing file is refused before any work, unless --force is given."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import one_sentence

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli.commands import COMMANDS, reference

WRITING = {
    "generate": (["generate"], "kept.jsonl"),
    "fit-lens": (["fit-lens"], "kept.safetensors"),
    "export": (["export", "demo-qwen3"], "kept.csv"),
    "plot": (["plot", "demo-qwen3", "flow"], "kept.html"),
    "report": (["report", "demo-qwen3"], "kept.html"),
    "compare": (["compare", "demo-qwen3", "demo-llama"], "kept.html"),
}
"""Command that writes a file -> how it is called, and a name for the file."""
FOLDERS = {
    "scan": ["scan"],
    "evaluate": ["evaluate"],
    "train": ["train", "--steps", "1"],
    "ablate": ["ablate", "demo-qwen3", "--layers", "0", "--limit", "1"],
    "align": ["align"],
}
"""Command that writes a folder -> how it is called."""
ELSEWHERE = {"show"}
"""Command that writes a file, for which it needs a lens first: test_lens_card.py has its tests."""


@pytest.fixture
def no_model(monkeypatch):
    """No command loads a model before it has checked where it writes."""
    monkeypatch.setattr("internal_policy.models.loading.load_model", None)


# files


@pytest.mark.parametrize("name", WRITING)
def test_an_existing_file_is_refused_before_any_work(name, here, capsys, no_model):
    command, file = WRITING[name]
    Path(file).write_text("mine")
    assert main([*command, "-o", file]) == 2
    said = f"error: {file} already exists. Choose another --output, or add --force to replace it.\n"
    assert capsys.readouterr().err == said
    assert Path(file).read_text() == "mine"


@pytest.mark.parametrize(("command", "file"), [WRITING[name] for name in ("export", "plot", "report")])
def test_force_replaces_an_existing_file(command, file, here):
    Path(file).write_text("mine")
    assert main([*command, "-o", file, "--force"]) == 0
    assert Path(file).read_text() != "mine"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["generate", "--problems", "in.jsonl"], "in.jsonl"),
        (["generate", "--lens", "in.parquet"], "in.parquet"),
        (["fit-lens", "--rollouts", "in.safetensors"], "in.safetensors"),
        (["fit-lens", "--model", "model"], "model/model.safetensors"),
        (["export", "scan"], "scan/layers-00000.parquet"),
        (["export", "scan", "--format", "json"], "./scan/scan.json"),
    ],
)
def test_force_replaces_no_file_that_the_command_reads(words, file, here, capsys, no_model):
    shutil.copytree(bundle.DATA / "scans" / "demo-qwen3", here / "scan")
    (here / "model").mkdir()
    if not Path(file).exists():
        Path(file).write_text("mine")
    before = Path(file).read_bytes()
    output = ["--table", "layers"] if words[0] == "export" else []
    form = ["--format", "parquet"] if file.endswith("0.parquet") else []
    assert main([*words, *output, *form, "-o", file, "--force"]) == 2
    said = f"error: --output is {Path(file)}, which is also an input. Choose another --output.\n"
    assert capsys.readouterr().err == said
    assert Path(file).read_bytes() == before


def test_force_does_not_remove_rollouts_that_the_scan_reads(asked, here, capsys):
    assert main([*asked, "-o", "mine"]) == 0
    rollouts = here / "mine" / "rollouts-00000.parquet"
    capsys.readouterr()
    assert main(["scan", *asked[1:3], "--rollouts", str(rollouts), "-o", "mine", "--force"]) == 2
    assert "rollouts-00000.parquet, which is also an input. Choose another --output." in capsys.readouterr().err
    assert rollouts.exists()


@pytest.mark.parametrize("name", WRITING)
def test_a_folder_is_not_replaced_by_a_file(name, here, capsys, no_model):
    command, file = WRITING[name]
    (here / file).mkdir()
    assert main([*command, "-o", file, "--force"]) == 2
    assert capsys.readouterr().err == f"error: {file} is a folder. Choose another --output.\n"


@pytest.mark.parametrize("name", WRITING)
def test_an_ending_that_the_command_does_not_write_is_refused(name, here, capsys, no_model):
    assert main([*WRITING[name][0], "-o", "kept.foo"]) == 2
    one_sentence(capsys, "kept.foo", here)


@pytest.mark.parametrize("name", [*WRITING, *FOLDERS])
def test_a_file_in_place_of_the_folder_is_refused_before_any_work(name, here, capsys, no_model):
    Path("file").write_text("mine")
    command, file = WRITING[name] if name in WRITING else (FOLDERS[name], "run")
    assert main([*command, "-o", f"file/{file}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "file" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", [*WRITING, *FOLDERS])
def test_a_folder_that_may_not_be_written_to_is_refused_before_any_work(name, here, capsys, no_model, monkeypatch):
    monkeypatch.setattr("internal_policy.cli.outputs.os.access", lambda *_: False)
    command, file = WRITING[name] if name in WRITING else (FOLDERS[name], "run")
    assert main([*command, "-o", file]) == 2
    one_sentence(capsys, f"You don't have permission to write to {here}. Choose another --output.", here)


@pytest.mark.parametrize("name", [*WRITING, *FOLDERS])
def test_a_name_that_is_too_long_is_refused_before_any_work(name, here, capsys, no_model):
    command, file = WRITING[name] if name in WRITING else (FOLDERS[name], "run")
    assert main([*command, "-o", "x" * 300 + Path(file).suffix]) == 2
    one_sentence(capsys, "(File name too long). Choose another --output.", here)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_writes_has_the_short_option_and_force(name):
    options = {option.name: option for options in reference()[name].groups.values() for option in options}
    assert ("output" in options) == (name in {*WRITING, *FOLDERS, *ELSEWHERE})
    if "output" in options:
        assert options["output"].flags == ("-o", "--output")
        assert options["force"].flags == ("--force",)


@pytest.mark.parametrize("name", ["generate", "fit-lens", "evaluate"])
def test_a_cache_that_cannot_be_written_to_is_refused_before_any_work(name, here, capsys, no_model, monkeypatch):
    (here.parent / "file").write_text("mine")
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(here.parent / "file"))
    assert main([name, "-o", {**WRITING, "evaluate": ([], "mine")}[name][1]]) == 2
    error = capsys.readouterr().err
    assert f"error: You don't have permission to write to the cache {here.parent / 'file'}. Set INTERNAL_" in error


# folders


@pytest.fixture
def evaluated(asked) -> list[str]:
    """A short evaluation of a tiny model."""
    return ["evaluate", *asked[1:], "--samples", "1"]


def test_another_scan_in_the_folder_is_refused_without_force(asked, here, capsys):
    assert main([*asked, "-o", "mine"]) == 0
    capsys.readouterr()
    assert main([*asked, "-o", "mine", "--seed", "5"]) == 2
    said = (
        "mine already contains another scan with different settings (--seed). Choose another --output, or add --force"
    )
    assert said in capsys.readouterr().err


def test_force_replaces_another_scan_but_no_other_file(asked, here, capsys):
    assert main([*asked, "-o", "mine", "--seed", "5"]) == 0
    (here / "mine" / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert main([*asked, "-o", "mine", "--force", "--limit", "4"]) == 0
    assert "Removed the earlier scan from mine." in capsys.readouterr().err
    assert json.loads((here / "mine" / "scan.json").read_text())["rollouts"] == 4
    assert (here / "mine" / "notes.txt").read_text() == "mine"
    assert len(list((here / "mine").glob("rollouts-*.parquet"))) == 1


def test_force_does_not_repeat_the_same_scan(asked, here, capsys):
    assert main([*asked, "-o", "mine"]) == 0
    assert main([*asked, "-o", "mine", "--force"]) == 0
    assert "Read from the cache" in capsys.readouterr().err


def test_nothing_is_removed_before_everything_is_checked(asked, here):
    assert main([*asked, "-o", "mine"]) == 0
    before = (here / "mine" / "scan.json").read_text()
    assert main([*asked, "-o", "mine", "--force", "--layers", "9"]) == 2
    assert main([*asked, "-o", "mine", "--force", "--seed", "5", "--device", "cuda:7"]) == 2
    assert main([*asked, "-o", "mine", "--force", "--seed", "5", "--dry-run"]) == 0
    assert (here / "mine" / "scan.json").read_text() == before


def test_force_removes_only_work_of_the_same_kind(asked, evaluated, here, capsys):
    assert main([*asked, "-o", "mine"]) == 0
    assert main([*evaluated, "-o", "mine", "--force"]) == 2
    assert "mine isn't empty and contains no evaluation. Choose another --output." in capsys.readouterr().err


def test_force_never_touches_a_folder_of_somebody_else(asked, here, capsys):
    (here / "photos").mkdir()
    (here / "photos" / "asked.json").write_text('{"name": "not ours"}')
    (here / "photos" / "cat.png").write_text("cat")
    assert main([*asked, "-o", "photos", "--force"]) == 2
    assert "is damaged (it contains no settings). Choose another --output." in capsys.readouterr().err
    assert {path.name for path in (here / "photos").iterdir()} == {"asked.json", "cat.png"}


def test_force_replaces_another_evaluation(evaluated, here):
    assert main([*evaluated, "-o", "mine"]) == 0
    assert main([*evaluated, "-o", "mine", "--limit", "3"]) == 2
    assert main([*evaluated, "-o", "mine", "--limit", "3", "--force"]) == 0
    assert len(pd.read_parquet(here / "mine" / "rollouts.parquet")) == 3


@pytest.fixture
def untrained(monkeypatch) -> list[str]:
    """A training run that is begun, but takes no step."""
    monkeypatch.setattr("internal_policy.train.run.train", lambda *_: None)
    monkeypatch.setattr("internal_policy.train.run.watched", lambda *_: [])
    return ["train", "--layer", "3", "--steps", "2", "--limit", "60", "-o", "run"]


def test_force_begins_another_run_anew(untrained, here, capsys):
    assert main(untrained) == 0
    (here / "run" / "checkpoint-1").mkdir()
    (here / "run" / "checkpoint-1" / "weights").write_text("old")
    assert main([*untrained, "--seed", "5"]) == 2
    assert (
        "run contains a run with a different --seed. Choose another --output, or add --force" in capsys.readouterr().err
    )
    assert main([*untrained, "--seed", "5", "--force"]) == 0
    assert json.loads((here / "run" / "run.json").read_text())["seed"] == 5
    assert not (here / "run" / "checkpoint-1").exists()


def test_force_begins_the_same_run_anew_if_it_has_checkpoints(untrained, here, capsys):
    assert main(untrained) == 0
    (here / "run" / "checkpoint-1").mkdir()
    assert main(untrained) == 2
    assert "Continue it with --resume, or add --force to begin anew." in capsys.readouterr().err
    assert main([*untrained, "--force"]) == 0
    assert not (here / "run" / "checkpoint-1").exists()


def test_resume_and_force_contradict_each_other(untrained, here, capsys):
    assert main([*untrained, "--resume", "--force"]) == 2
    one_sentence(capsys, "--resume continues the run in the folder, but --force removes it. Use one of them.", here)


def test_several_processes_cannot_replace_a_run(untrained, here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*untrained, "--force"]) == 2
    one_sentence(capsys, "--force can't be used with several processes. Run `internal-policy rm FOLDER` first.", here)
