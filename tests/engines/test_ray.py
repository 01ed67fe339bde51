"""Scanning in replicas of the model on Ray, or on a stand-in that runs each of them at once in this process."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from conftest import numbers, one_sentence, saved, tiny_model, undisturbed

from internal_policy import errors
from internal_policy.__main__ import main
from internal_policy.cli import opening
from internal_policy.engines import ray as engine
from internal_policy.errors import InputError
from internal_policy.scans import store
from internal_policy.scans.scan import Scanner
from internal_policy.scans.shard import Shard

pytestmark = pytest.mark.usefixtures("here")
ON_RAY = ["--engine", "ray", "--replicas", "2", "--gpus-per-replica", "0"]
real = pytest.mark.skipif(find_spec("ray") is None, reason="ray isn't installed")


class Result:
    """What something called remotely returned or raised."""

    def __init__(self, called: Any, *given: Any) -> None:
        self.value, self.error = None, None
        try:
            self.value = called(*given)
        except Exception as error:
            self.error = error


class Handle:
    """A replica of the stand-in: what is called remotely runs at once."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: Result(getattr(self.made, name), *given))


class TaskError(Exception):
    """An error in a replica; `cause` is what it raised."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class ActorError(Exception):
    """The end of a replica."""


class StandIn(ModuleType):
    """A module with the functions of Ray that are used here, for a machine with 2 CPUs."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.exceptions = ModuleType("ray.exceptions")
        self.exceptions.RayTaskError, self.exceptions.RayActorError = TaskError, ActorError  # pyright: ignore
        self.joined: list[Any] = []
        self.options: dict[str, Any] = {}

    def init(self, address: str, **options: Any) -> None:
        if address == "auto":
            raise ConnectionError("Could not find any running Ray instance.")
        self.joined.append(address)

    def shutdown(self) -> None:
        self.joined.clear()

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 9.0}}]

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda kind: SimpleNamespace(remote=lambda *given: Handle(kind(*given)))

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        return running[:1], running[1:]

    def get(self, done: Result) -> Any:
        if done.error is not None:
            raise done.error if isinstance(done.error, ActorError) else TaskError(done.error)
        return done.value


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    return module


def test_replicas_write_the_numbers_of_one_process(stand_in, asked, here, capsys):
    whole = undisturbed(asked, here / "whole")
    capsys.readouterr()
    assert main([*asked, *ON_RAY, "--output", "mine", "--json"]) == 0
    assert numbers(here / "mine") == whole
    assert json.loads(capsys.readouterr().out)["cached"] is False
    assert stand_in.options == {"num_cpus": 1, "num_gpus": 0, "max_restarts": -1, "max_task_retries": engine.RETRIES}
    assert stand_in.joined == []  # Ray was shut down
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    record = json.loads((here / "mine" / store.RECORD).read_text())
    assert record["command"] == sys.argv
    assert main([*asked, "--output", "mine", "--json"]) == 0  # the engine is no part of the question
    assert json.loads(capsys.readouterr().out)["cached"] is True


@pytest.mark.usefixtures("stand_in")
def test_replicas_only_measure_what_is_missing(asked, here, monkeypatch):
    whole = undisturbed(asked, here / "mine")
    for name in (store.RECORD, "part-00001.json"):
        (here / "mine" / name).unlink()
    measured, measure = [], Scanner.measured

    def noted(scanner, rollouts, first, *others):
        measured.append(first)
        return measure(scanner, rollouts, first, *others)

    monkeypatch.setattr(Scanner, "measured", noted)
    for expected in ([4], []):
        assert main([*asked, *ON_RAY, "--output", "mine"]) == 0
        assert numbers(here / "mine") == whole
        assert measured == expected
        measured.clear()
        (here / "mine" / store.RECORD).unlink()  # killed before it was closed


@pytest.mark.usefixtures("stand_in")
def test_an_error_in_a_replica_is_one_sentence_and_leaves_an_earlier_scan_alone(asked, here, capsys, monkeypatch):
    undisturbed(asked, here / "mine")
    before = numbers(here / "mine")
    capsys.readouterr()

    def refuse(*_):
        raise InputError("The weights are damaged.")

    monkeypatch.setattr(opening.Opener, "open", refuse)
    assert main([*asked, *ON_RAY, "--output", "mine", "--force", "--top-k", "1"]) == 2
    assert capsys.readouterr().err.endswith("\nerror: The weights are damaged.\n")
    assert numbers(here / "mine") == before


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--replicas 3 --gpus-per-replica 0", "this machine has 2 CPUs; 2 of 3 would fit. Lower --replicas."),
        ("", "Each replica needs 1 GPU, but this machine has 0 GPUs; 0 of 1 would fit."),
        ("--address auto", "There is no Ray cluster on this machine. Start one with `ray start`, or leave out"),
        ("--address 127.0.0.1:1", "There is no Ray cluster at 127.0.0.1:1. Start one with `ray start`, or leave out"),
    ],
)
def test_a_cluster_that_is_too_small_or_not_there_is_refused(words, sentence, asked, here, capsys):
    assert main([*asked, "--engine", "ray", *words.split()]) == 2
    one_sentence(capsys, sentence, here)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--replicas 2", "--replicas only applies to --engine ray. Add that, or leave it out."),
        ("--engine ray --replicas 0", "--replicas is 0; it must be 1 or more."),
        ("--engine ray --address there", "--address is 'there'. Use local, auto or the HOST:PORT of a Ray cluster."),
        ("--engine ray --shard 0/2", "--engine ray shares the work among its replicas. Leave out --shard"),
        ("--engine ray --device cuda:1", "--device is cuda:1, but Ray gives each replica its devices."),
        ("--engine ray --gpus-per-replica 2", "A model on 2 GPUs needs --device-map. Add --device-map auto"),
        ("--engine ray --reader nnsight --remote", "--engine ray runs the model on your machines, and --remote on"),
    ],
)
def test_options_that_do_not_fit_ray_are_refused(words, sentence, here, capsys):
    assert main(["scan", *words.split()]) == 2
    one_sentence(capsys, sentence, here)


def test_without_ray_the_extra_is_named(asked, here, capsys, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    assert main([*asked, *ON_RAY]) == 2
    one_sentence(capsys, "pip install 'internal-policy[ray]'", here)


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path):
    replica = engine.Replica(lambda: pytest.fail("loaded"), tmp_path, 1)
    with pytest.raises(InputError, match=r"doesn't see .*unshared\. Choose an --output that all machines share\.$"):
        replica.measure(Shard(0, 2), tmp_path / "unshared" / "mark")


@pytest.mark.parametrize(
    ("said", "kind", "sentence"),
    [
        ("The actor is unavailable", ChildProcessError, "A replica died 4 times at the same part, most likely for"),
        ("Replica failed to import on the worker", InputError, "A machine of the cluster can't import internal-policy"),
    ],
)
def test_the_end_of_a_replica_is_explained(stand_in, said, kind, sentence):
    def die():
        raise ActorError(said)

    with pytest.raises(kind, match=sentence):
        engine.Team({Result(die): None}).finished()


def scanning(words: list[str]) -> subprocess.Popen:
    """A scan in a process group of its own."""
    command = [sys.executable, "-m", "internal_policy", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def replica_at_work(child: subprocess.Popen, folder: Path) -> int:
    """The process that has claimed a part, as soon as one is measured."""
    while True:
        for claim in folder.glob(".*.claim") if (folder / "part-00000.json").exists() else ():
            with suppress(FileNotFoundError, IndexError):
                return int(claim.read_text().split()[1])
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)


@real
@pytest.mark.slow
def test_a_part_whose_replica_was_killed_is_measured_again(asked, here):
    words = [*asked, "--limit", "6", "--batch-size", "1", "--max-new-tokens", "60"]
    whole = undisturbed(words, here / "whole")
    child = scanning([*words, *ON_RAY, "--output", str(here / "mine"), "--json"])
    os.kill(replica_at_work(child, here / "mine"), signal.SIGKILL)
    printed, said = child.communicate()
    assert child.returncode == 0, said
    assert numbers(here / "mine") == whole
    assert json.loads(printed)["cached"] is False  # Ray printed nothing in between
    assert "raylet" not in said
    assert not [*(here / "mine").glob(".*")]  # nor did the killed replica leave a claim


@real
@pytest.mark.slow
def test_an_interrupted_scan_on_ray_goes_on_without_it(asked, here):
    words = [*asked, "--limit", "6", "--batch-size", "1", "--max-new-tokens", "60"]
    whole = undisturbed(words, here / "whole")
    child = scanning([*words, *ON_RAY, "--output", str(here / "mine")])
    replica = replica_at_work(child, here / "mine")
    os.killpg(child.pid, signal.SIGINT)
    printed, said = child.communicate()
    assert child.returncode == 130
    assert printed == ""
    assert "Interrupted. Finished work is kept. Continue with: internal-policy scan" in said
    assert not psutil.pid_exists(replica)
    assert not (here / "mine" / store.RECORD).exists()
    assert main([*words, "--output", str(here / "mine")]) == 0
    assert numbers(here / "mine") == whole


@real
@pytest.mark.slow
def test_what_goes_wrong_on_ray_is_one_sentence(asked, here, capsys):
    assert main([*asked, "--engine", "ray", "--replicas", "999", "--gpus-per-replica", "0"]) == 2
    one_sentence(capsys, "of 999 would fit. Lower --replicas.", here)


@real
@pytest.mark.slow
def test_an_error_on_ray_is_one_sentence(asked, here, tokenizer, tmp_path, capsys):
    model = tiny_model("qwen3").float()
    model.lm_head.weight.data[:] = torch.nan
    words = [*asked, "--model", str(saved(model, tokenizer, tmp_path / "damaged")), *ON_RAY]
    assert main(words) == 2
    one_sentence(capsys, "has NaN or infinite weights", here)
