"""Several processes that share one scan, sample, evaluation or lens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SUMS, jsonl, numbers, one_sentence, undisturbed
from safetensors.torch import load_file

from internal_policy import files
from internal_policy.__main__ import main
from internal_policy.models import loading
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def sampled(asked) -> list[str]:
    return ["generate", *asked[1:]]


def launched(monkeypatch, rank: int) -> None:
    """Become one of two processes that a launcher started."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


def test_shards_of_a_scan_equal_a_single_process_and_the_last_prints_it(asked, here, capsys):
    whole = undisturbed(asked, here / "whole")
    table = capsys.readouterr().out
    words = [*asked, "--output", "mine"]
    assert main([*words, "--shard", "0/2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Shard 0/2 is done; 1 of 3 parts is left to others in mine." in printed.err
    assert main([*words, "--shard", "1/2"]) == 0
    assert capsys.readouterr().out.replace("mine", str(here / "whole")) == table
    assert numbers(here / "mine") == whole
    assert not store.damaged(here / "mine")


def test_shards_of_every_third_token_equal_a_single_process(asked, here):
    words = [*asked, "--every", "3"]
    whole = undisturbed(words, here / "whole")
    for shard in ("1/2", "0/2"):
        assert main([*words, "--output", "mine", "--shard", shard]) == 0
    assert numbers(here / "mine") == whole
    positions = store.read(here / "mine", "policies", ["position"])["position"]
    assert {*positions % 3} == {0}
    rows = store.read(here / "mine", "rollouts", ["response_ids"])["response_ids"]
    assert store.record(here / "mine")["tokens"] == sum(-(-len(ids) // 3) for ids in rows)


@pytest.mark.slow
def test_a_scan_continues_with_another_number_of_shards_or_none(asked, here, capsys):
    whole = undisturbed(asked, here / "whole")
    for words in (["--shard", "2/3"], ["--shard", "3/4"], ["--shard", "0/2"], []):
        assert main([*asked, "--output", "mine", *words]) == 0
    assert numbers(here / "mine") == whole


def test_a_shard_without_parts_loads_no_model(asked, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_model", None)
    assert main([*asked, "--shard", "3/4"]) == 0
    assert "Shard 3/4 is done; 3 of 3 parts are left to others" in capsys.readouterr().err


def test_shards_of_a_sample_equal_a_single_process_and_one_that_begins_late_has_no_work(sampled, here, capsys):
    assert main([*sampled, "--output", "whole.jsonl"]) == 0
    words = [*sampled, "--output", "mine.jsonl"]
    capsys.readouterr()
    assert main([*words, "--shard", "1/3"]) == 0
    assert "Shard 1/3 is done; 2 of 3 parts are left to others" in capsys.readouterr().err
    assert main([*words, "--shard", "2/3"]) == 0
    assert not (here / "mine.jsonl").exists()
    assert main([*words, "--shard", "0/3"]) == 0
    assert "10 responses from the policy at final" in capsys.readouterr().out
    assert (here / "mine.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()
    assert not [path for path in (store.root() / "rollouts").iterdir() if path.is_dir()]
    assert main([*words, "--shard", "3/4"]) == 0
    assert "mine.jsonl is already written." in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_a_shard_finishes_the_sample_of_shards(sampled, here):
    assert main([*sampled, "--output", "whole.jsonl"]) == 0
    assert main([*sampled, "--output", "mine.jsonl", "--shard", "1/3"]) == 0
    assert main([*sampled, "--output", "mine.jsonl"]) == 0
    assert (here / "mine.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_shards_of_an_evaluation_share_every_set_of_problems(asked, here, capsys, tmp_path):
    other = jsonl(tmp_path / "other.jsonl", *SUMS[:5])
    words = ["evaluate", *asked[1:5], str(other), *asked[5:], "--samples", "2"]
    assert main([*words, "--output", "whole"]) == 0
    assert main([*words, "--output", "mine", "--shard", "1/2"]) == 0
    assert "Shard 1/2 is done; 5 of 8 parts are left to others" in capsys.readouterr().err
    assert not (here / "mine").exists()
    assert main([*words, "--output", "mine", "--shard", "0/2"]) == 0
    assert numbers(here / "mine") == numbers(here / "whole")


def test_shards_share_the_sampling_for_a_lens_and_the_last_one_fits_it(asked, here, capsys):
    words = ["fit-lens", *asked[1:], "--samples", "2", "--steps", "4", "--batch-tokens", "16"]
    assert main([*words, "--output", "whole.safetensors"]) == 0
    words += ["--output", "mine.safetensors"]
    assert main([*words, "--shard", "0/2"]) == 0
    assert "Shard 0/2 is done" in capsys.readouterr().err
    assert main([*words, "--shard", "1/2"]) == 0
    one, two = (load_file(here / f"{name}.safetensors") for name in ("whole", "mine"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_processes_of_a_launcher_take_turns_and_the_first_alone_prints(asked, sampled, here, capsys, monkeypatch):
    whole = undisturbed(asked, here / "whole")
    assert main([*sampled, "--output", "whole.jsonl"]) == 0
    capsys.readouterr()
    scan, sample = [*asked, "--output", "mine"], [*sampled, "--output", "mine.jsonl"]
    launched(monkeypatch, 1)
    monkeypatch.setattr("internal_policy.scans.job.meet", lambda *_: None)  # the first comes only afterwards
    assert main(scan) == main(sample) == 0
    assert capsys.readouterr() == ("", "")
    assert not (here / "mine" / store.RECORD).exists()
    launched(monkeypatch, 0)
    assert main(scan) == main(sample) == 0
    assert "Scan: mine" in capsys.readouterr().out
    assert numbers(here / "mine") == whole
    assert (here / "mine.jsonl").read_bytes() == (here / "whole.jsonl").read_bytes()
    launched(monkeypatch, 1)  # it takes so long to start that the first has finished everything
    monkeypatch.setattr(loading, "load_model", None)
    assert main(scan) == main(sample) == 0
    assert capsys.readouterr() == ("", "")


def test_a_process_of_a_launcher_has_a_device_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(loading, "device_named", lambda name: name)
    assert [loading.device_numbered(process) for process in range(2)] == ["cpu:0", "cpu:1"]
    with pytest.raises(loading.InputError, match="Process 2 of this machine has no device of its own, because there"):
        loading.device_numbered(2)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)  # srun shows each task its own one
    assert loading.device_numbered(2) == "auto"


def test_a_process_whose_work_others_finish_while_it_loads_its_model_samples_nothing(sampled, here, monkeypatch):
    load = loading.load_model

    def slowly(*given, **options):
        launched(monkeypatch, 0)
        monkeypatch.setattr(loading, "load_model", load)
        assert main(sampled) == 0
        return load(*given, **options)

    launched(monkeypatch, 1)
    monkeypatch.setattr(loading, "load_model", slowly)
    assert main(sampled) == 0
    assert (here / "rollouts.parquet").exists()
    assert not [path for path in (store.root() / "rollouts").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["scan", "--shard", "2/2"], "There is no shard 2/2. Shards count from 0; with 2 shards they are 0/2 to 1/2."),
        (["generate", "--shard", "auto"], "--shard auto found no SLURM array"),
        (["evaluate", "--shard", "1"], "--shard is '1'. Write I/N with I from 0"),
    ],
)
def test_a_shard_that_cannot_be_is_refused(words, sentence, here, capsys):
    assert main(words) == 2
    one_sentence(capsys, sentence, here)


def test_shards_with_different_questions_are_refused(asked, sampled, here, capsys):
    assert main([*asked, "--output", "mine", "--shard", "0/2"]) == 0
    assert main([*sampled, "--output", "mine.jsonl", "--shard", "0/2"]) == 0
    capsys.readouterr()
    assert main([*asked, "--output", "mine", "--shard", "1/2", "--seed", "1"]) == 2
    assert "mine already contains another scan with different settings (--seed)" in capsys.readouterr().err
    assert main([*sampled, "--output", "mine.jsonl", "--shard", "1/2", "--seed", "1"]) == 2
    error = capsys.readouterr().err
    assert "Other processes have begun mine.jsonl with different settings (--seed)." in error
    assert main(["rm", "--yes", error.split("internal-policy rm ")[1].split("`")[0]]) == 0
    assert main([*sampled, "--output", "mine.jsonl", "--shard", "1/2", "--seed", "1"]) == 0


def test_shards_replace_nothing(asked, sampled, here, capsys):
    undisturbed(asked, here / "mine")
    (here / "mine.jsonl").write_text("")
    words = ["--shard", "0/2", "--force", "--seed", "1"]
    assert main([*asked, "--output", "mine", *words]) == 2
    assert "mine contains other work, which only a single process can replace." in capsys.readouterr().err
    assert main([*sampled, "--output", "mine.jsonl", *words]) == 2
    assert "Several processes can't replace mine.jsonl. Remove it, or choose" in capsys.readouterr().err
    assert main([*sampled, "--output", "mine.jsonl", *words[:2]]) == 2
    assert "mine.jsonl already exists" in capsys.readouterr().err


def test_the_fit_of_a_tuned_lens_is_not_shared(here, capsys, tmp_path):
    given = str(jsonl(tmp_path / "given.jsonl", {"prompt_ids": [1, 2], "response_ids": [3, 4]}))
    assert main(["fit-lens", "--rollouts", given, "--shard", "0/2"]) == 2
    one_sentence(capsys, "Several processes can share the sampling, but not the fit", here)


SLOWLY = (
    "import sys, time; from internal_policy.scans import scan; from internal_policy.__main__ import main\n"
    "measure = scan.Scanner.measured\n"
    "def slowly(scanner, rollouts, first, *rest):\n"
    "    time.sleep(1)\n"
    "    print('measured', first, file=sys.stderr, flush=True)\n"
    "    return measure(scanner, rollouts, first, *rest)\n"
    "scan.Scanner.measured = slowly; sys.exit(main(sys.argv[1:]))"
)
"""A program that says which parts it measures, and takes at least a second for each."""


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SLOWLY, *words], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("with_shards", [True, False])
def test_processes_measure_each_part_once(count, with_shards, asked, here):
    words = [*asked[:-1], "1", "--output"]  # ten parts
    whole = undisturbed(words[:-1], here / "whole")
    shards = [["--shard", f"{index}/{count}"] if with_shards else [] for index in range(count)]
    children = [started(*words, "mine", *shard) for shard in shards]
    said = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * count, said
    assert sorted(line for text in said for line in text.splitlines() if line.startswith("measured")) == sorted(
        f"measured {first}" for first in range(10)
    )
    assert numbers(here / "mine") == whole
    assert not store.damaged(here / "mine")


@pytest.mark.slow
def test_another_process_measures_the_part_of_one_that_was_killed(asked, here):
    words = [*asked[:-1], "2", "--output"]  # five parts
    whole = undisturbed(words[:-1], here / "whole")
    killed, other = started(*words, "mine"), started(*words, "mine")
    while not [*(here / "mine").glob(".*.claim")]:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    said = other.communicate()[1]
    assert other.returncode == 0
    assert said.count("measured") >= 4  # the killed one had finished one part at most
    assert numbers(here / "mine") == whole
    assert not [path for path in (here / "mine").iterdir() if files.is_hidden(path.name)]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["scan", "generate"])
def test_torchrun_shares_the_work_and_prints_one_result(command, asked, here):
    name = "mine" if command == "scan" else "mine.jsonl"
    words = [command, *asked[1:-1], "2", "--output"]
    assert main([*words, f"whole.{name}"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "internal_policy"]
    path = os.pathsep.join([str(Path(files.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launcher, *words, name], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Scan: mine" if command == "scan" else "Wrote mine.jsonl.") == 1
    if command == "scan":
        assert numbers(here / "mine") == numbers(here / "whole.mine")
    else:
        assert (here / "mine.jsonl").read_bytes() == (here / "whole.mine.jsonl").read_bytes()
