"""A disk that is full in the middle of the work, or that can't be written at all."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults.commands import COMMANDS
from faults.harness import finished

from internal_policy import bundle


def mount(folder: Path, *options: str) -> None:
    """Mount a small disk in memory there, or skip the test where that isn't allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root on Linux can mount a small disk")
    words = ["mount", "-t", "tmpfs", "-o", ",".join(("size=96m", *options)), "none", str(folder)]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting isn't allowed here")


@pytest.fixture
def disk(tmp_path):
    """A room on a small disk."""
    mount(tmp_path / "disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


CASES = {
    "a part": ("scan", "link .*rollouts-00001", "work/out"),
    "the means of a part": ("scan", "rename .*policies-00001", "work/out"),
    "the vocabulary": ("scan", "rename .*part-00002", "work/out"),
    "the record": ("scan", "rename .*vocabulary", "work/out"),
    "responses": ("generate", "rename .*part-00001", "cache/rollouts"),
    "the file of responses": ("generate", r"open .*work/\.internal-policy-.*\.parquet", "work"),
    "a lens": ("fit-lens", r"open .*work/\.internal-policy-.*\.safetensors", "work"),
    "a checkpoint": ("train", r"open .*\.partial/checkpoint-2/", "work/out"),
    "a table of a run": ("train", "rename .*samples", "work/out"),
    "a model": ("train", r"mkdir .*\.partial/model", "work/out"),
}
"""What is written when the disk gets full -> the command, the file operation before, and the folder that is named."""


@pytest.mark.parametrize("case", CASES)
def test_a_full_disk_is_said_in_one_sentence_and_the_command_goes_on_when_there_is_room(case, references, disk):
    name, like, named = CASES[case]
    command, filler = COMMANDS[name], disk / "filler"
    full = finished(command.words, disk, {"act": "fill", "at": 1, "like": like, "target": str(filler)})
    assert filler.exists(), full
    assert "Traceback" not in full.said
    assert full.code == 1
    assert full.last.startswith("error: There is no space left on the disk of ")
    assert " Finished work is kept. Make room, then try again. Continue with: internal-policy" in full.last
    folder = full.last.removeprefix("error: There is no space left on the disk of ").partition(". Finished")[0]
    assert named in folder
    filler.unlink()
    again = finished(command.again(disk), disk)
    assert again.code == 0, again.said
    assert command.result(disk) == references(name).result


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(name, tmp_path):
    """The model's weights can't be loaded, which would be said instead."""
    model = Path(shutil.copytree(bundle.DATA / "models" / "demo-qwen3", tmp_path / "model"))
    (model / "model.safetensors").write_bytes(b"nothing")
    mount(tmp_path / "work" / "disk", "ro")
    try:
        command = COMMANDS[name]
        words = [*command.words, *(() if name == "ablate" else ("--model", str(model)))]  # it has the scan's own model
        words[words.index("--output") + 1] = f"disk/{command.output}"
        done = finished(words, tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "work" / "disk")], check=True)
    assert done.code == 2
    assert done.last.startswith("error: You don't have permission to write to ")
    assert done.last.endswith("Choose another --output.")
    assert "Traceback" not in done.said
