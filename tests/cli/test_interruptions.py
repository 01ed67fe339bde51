"""Scans that were interrupted, damaged, shared between processes or short of memory or disk."""

import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import pandas as pd
import pytest
import torch
from conftest import numbers, one_sentence, undisturbed

from internal_policy import files
from internal_policy.__main__ import main
from internal_policy.scans import scan, sharing, store

pytestmark = pytest.mark.usefixtures("here")


def test_an_interrupted_scan_says_how_to_go_on_and_equals_an_undisturbed_one(asked, here, capsys, monkeypatch):
    whole = undisturbed(asked, here / "whole")
    measure, measured = scan.Scanner.measured, []

    def interrupted(scanner, rollouts, first, *others):
        if first == 4 and len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(first)
        return measure(scanner, rollouts, first, *others)

    monkeypatch.setattr(scan.Scanner, "measured", interrupted)
    words = [*asked, "--output", "mine"]
    assert main(words) == 130
    assert "Continue with: internal-policy scan --model" in capsys.readouterr().err
    assert not (here / "mine" / store.RECORD).exists()

    def counted(scanner, rollouts, first, *others):
        measured.append(first)
        return measure(scanner, rollouts, first, *others)

    monkeypatch.setattr(scan.Scanner, "measured", counted)
    assert main(words) == 0
    assert measured == [0, 4, 8]  # nothing that was whole is measured again
    assert numbers(here / "mine") == whole


@pytest.mark.slow
def test_a_killed_scan_goes_on_and_equals_an_undisturbed_one(asked, here):
    whole = undisturbed(asked, here / "whole")
    slowly = (  # stop for long after the first part, so that the kill comes in the middle
        "import sys, time; from internal_policy.scans import store; from internal_policy.__main__ import main\n"
        "write = store.write_table\n"
        "def wait(path, *rest, **options):\n"
        "    if path.name == 'policies-00001.parquet': path.with_name('here').touch(); time.sleep(600)\n"
        "    write(path, *rest, **options)\n"
        "store.write_table = wait; main(sys.argv[1:])"
    )
    child = subprocess.Popen([sys.executable, "-c", slowly, *asked, "--output", "mine"])
    while not (here / "mine" / "here").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (here / "mine" / "here").unlink()
    assert store.is_whole(here / "mine", 0)
    assert not store.is_whole(here / "mine", 1)
    assert main([*asked, "--output", "mine"]) == 0
    assert numbers(here / "mine") == whole


@pytest.mark.slow
def test_two_processes_with_one_question_write_one_scan(asked, here):
    whole = undisturbed(asked, here / "whole")
    words = [sys.executable, "-m", "internal_policy", *asked, "--output", "mine"]
    children = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    assert numbers(here / "mine") == whole
    assert not store.damaged(here / "mine")


def test_temporary_files_of_a_killed_run_are_no_obstacle(asked, here):
    (here / "mine").mkdir()
    (here / "mine" / f".internal-policy-{files.HERE}-99999999-00000000.json").write_text("{")
    assert main([*asked, "--output", "mine"]) == 0


@pytest.mark.parametrize("kind", store.KINDS)
def test_a_part_of_an_unfinished_scan_that_was_cut_short_is_measured_again(kind, asked, here):
    whole = undisturbed(asked, here / "mine")
    (here / "mine" / store.RECORD).unlink()
    part = store.part_path(here / "mine", kind, 1)
    part.write_bytes(part.read_bytes()[:500])
    assert main([*asked, "--output", "mine"]) == 0
    assert numbers(here / "mine") == whole


def test_a_second_process_measures_the_rollouts_of_the_first(asked, here, monkeypatch):
    from internal_policy.scans import sampling

    sampled = sampling.batch
    monkeypatch.setattr(sampling, "batch", lambda *given: sampled(*given)[::-1])  # another machine, other samples
    first = undisturbed(asked, here / "first")

    def late(*given):
        monkeypatch.setattr(sampling, "batch", lambda *given: sampled(*given)[::-1])
        with monkeypatch.context() as silent:
            silent.setattr(sharing, "SILENCE", -1)
            assert main([*asked, "--output", "mine"]) == 0  # somebody else begins and ends meanwhile
        return sampled(*given)

    monkeypatch.setattr(sampling, "batch", late)
    assert main([*asked, "--output", "mine"]) == 0
    assert numbers(here / "mine") == first
    assert not store.damaged(here / "mine")


def test_a_damaged_part_is_named_and_measured_again_on_request(asked, here, capsys):
    whole = undisturbed(asked, here / "mine")
    part = here / "mine" / "policies-00001.parquet"
    part.write_bytes(part.read_bytes()[:1000])
    assert main([*asked, "--output", "mine"]) == 2
    assert (
        "policies-00001.parquet is missing or cut short. Repair it with `internal-policy verify"
        in capsys.readouterr().err
    )
    assert main(["verify", "mine", "--repair"]) == 0
    assert numbers(here / "mine") == whole


def test_a_scan_whose_record_is_damaged_is_measured_again_on_request(asked, here, capsys):
    whole = undisturbed(asked, here / "mine")
    (here / "mine" / store.RECORD).write_text("{")
    assert main([*asked, "--output", "mine"]) == 2
    assert "scan.json is damaged" in capsys.readouterr().err
    assert main(["verify", "mine", "--repair"]) == 0
    assert numbers(here / "mine") == whole


def test_an_altered_rollout_is_generated_again_with_what_was_measured_of_it(asked, here):
    whole = undisturbed(asked, here / "mine")
    part = here / "mine" / "rollouts-00001.parquet"
    content = bytearray(part.read_bytes())
    content[100] ^= 1
    part.write_bytes(content)
    assert main(["verify", "mine", "--repair"]) == 0
    assert numbers(here / "mine") == whole


def test_out_of_memory_halves_the_batch_and_is_said_once(asked, here, capsys, monkeypatch):
    undisturbed(asked, here / "whole")
    blocks = scan.blocks

    def small(model, rollouts, points, positions):
        if len(rollouts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return blocks(model, rollouts, points, positions)

    monkeypatch.setattr(scan, "blocks", small)
    capsys.readouterr()
    assert main([*asked, "--output", "mine"]) == 0
    assert capsys.readouterr().err.count("Out of memory: measuring 2 rollouts at a time.") == 1
    one, two = (store.read(here / name, "layers") for name in ("whole", "mine"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-4)


def test_a_full_disk_is_refused_before_work_starts(asked, here, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    assert main(asked) == 2
    one_sentence(capsys, "0.0 GB free", here)


def test_a_full_disk_exits_with_1_and_keeps_finished_parts(asked, here, capsys, monkeypatch):
    write = store.write_table

    def full(path, *rest, **options):
        if path.name == "layers-00001.parquet":
            raise OSError(28, "No space left on device", str(path))
        write(path, *rest, **options)

    monkeypatch.setattr(store, "write_table", full)
    assert main([*asked, "--output", "mine"]) == 1
    said = f"error: There is no space left on the disk of {here / 'mine'}. Finished work is kept. Make room"
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{said}, then try again. Continue with: ")
    assert store.is_whole(here / "mine", 0)
