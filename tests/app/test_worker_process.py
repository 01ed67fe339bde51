"""The process that keeps a model loaded for the page "Try a prompt"."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from internal_policy.__main__ import main
from internal_policy.cli import worker as module
from internal_policy.scans import store

pytest.importorskip("streamlit")

APP = Path(__file__).parents[2] / "app"
ENDS = ("done", "stopped", "failed")


class Process:
    """A worker, driven by lines of JSON."""

    def __init__(self, cache: Path) -> None:
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "internal_policy.cli.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "INTERNAL_POLICY_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
            text=True,
        )
        self.first = json.loads(self.process.stdout.readline())

    def send(self, **request: Any) -> None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def ask(self, request: Any, stop_at: str = "") -> list[dict[str, Any]]:
        """All events of a request, which is stopped when it is in the state `stop_at`."""
        request.write()
        self.send(words=request.words(), text=request.text)
        events: list[dict[str, Any]] = []
        while not events or events[-1].get("state") not in ENDS:
            events.append(json.loads(self.process.stdout.readline()))
            if stop_at and events[-1].get("state") == stop_at:
                self.send(stop=True)
        return events

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("INTERNAL_POLICY_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def jobs(cache) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APP))
        yield importlib.import_module("jobs")


@pytest.fixture(scope="module")
def worker(cache) -> Iterator[Process]:
    process = Process(cache)
    yield process
    process.end()


def states(events: list[dict[str, Any]]) -> list[str]:
    found = [event["state"] for event in events if "state" in event]
    return [state for n, state in enumerate(found) if state != (found[n - 1] if n else "")]


def test_its_scan_is_the_one_that_the_scan_command_writes(worker, jobs, tmp_path, capsys):
    request = jobs.Request("answer", "demo-qwen3", "What is 47 + 385?", new_tokens=40)
    events = worker.ask(request)
    assert states(events) == ["loading", "answering", "measuring", "done"]
    told = [event["tokens"] for event in events if "grid" not in event and "tokens" in event][:-1]
    assert told == [*range(1, len(told) + 1)]
    assert main([*request.words(), "--output", str(tmp_path / "own")]) == 0
    for kind in ("rollouts", "policies", "layers"):
        ours, own = (next(store.pieces(folder, kind)) for folder in (Path(events[-1]["scan"]), tmp_path / "own"))
        assert ours.equals(own) if kind != "layers" else ours.to_pandas().equals(own.to_pandas())  # it has NaN
    assert store.record(Path(events[-1]["scan"]))["command"] == ["internal-policy", *request.words()]


def test_the_grid_fills_while_a_text_is_measured_by_the_loaded_model(worker, jobs):
    worker.ask(jobs.Request("read", "demo-qwen3", "Two plums."))  # loads the model, if this test runs alone
    events = worker.ask(jobs.Request("read", "demo-qwen3", "Ten apples and two pears make twelve. " * 8))
    assert states(events) == ["measuring", "done"]
    partial = [event for event in events if "grid" in event]
    assert 0 < partial[0]["share"] < 1
    assert [*partial[0]["grid"]["planes"]] == ["norm"]
    assert events[-1]["memory"] > 1e8


def test_the_same_prompt_is_read_from_the_cache(worker, jobs):
    request = jobs.Request("answer", "demo-qwen3", "What is 2 + 2?", new_tokens=8)
    assert not worker.ask(request)[-1]["cached"]
    again = worker.ask(request)[-1]
    assert again["cached"]
    assert again["response"]


def test_work_stops_when_it_is_told_to_and_the_next_prompt_is_answered(worker, jobs):
    long = jobs.Request("answer", "demo-qwen3", "What is 9 + 9?", new_tokens=1000, temperature=9.0)
    assert worker.ask(long, stop_at="answering")[-1]["state"] == "stopped"
    assert worker.ask(jobs.Request("answer", "demo-qwen3", "What is 3 + 2?", new_tokens=8))[-1]["state"] == "done"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"text": "x " * 9000},
            "The prompt has 18,008 tokens and the response may have 64, but demo-qwen3 reads at most 2,048",
        ),
        (
            {"text": "x " * 9000, "task": "read"},
            "The text has 18,000 tokens, but demo-qwen3 reads at most 2,048. Shorten it.",
        ),
        ({"text": " \n", "task": "read"}, "The prompt is empty."),
        ({"text": "a", "task": "read"}, "The text 'a' has fewer than two tokens."),
        ({"text": "<|im_start|>user\nHi<|im_end|>\n"}, "The text '<|im_start|>user"),
        ({"model": "/nowhere"}, "'/nowhere' isn't a folder or a hub id."),
        ({"temperature": 1e-9}, "temperature is 1e-09; it must be 0"),
    ],
)
def test_what_the_model_can_not_read_is_refused_in_a_sentence(worker, jobs, change, why):
    events = worker.ask(jobs.Request(**{"task": "answer", "model": "demo-qwen3", "text": "Hi", **change}))
    assert events[-1]["state"] == "failed"
    assert events[-1]["error"].startswith(why)


@pytest.mark.parametrize("text", ["--evil; rm $HOME", "-", "\0\x1b[31m\u202e", "<script>alert(1)</script>", "🙂" * 50])
def test_any_text_can_be_measured_and_is_not_on_the_command_line(worker, jobs, text):
    request = jobs.Request("answer", "demo-qwen3", text, new_tokens=2)
    assert text not in request.words()
    assert worker.ask(request)[-1]["state"] == "done"


def test_a_model_folder_that_can_not_be_loaded_is_refused_in_a_sentence(worker, jobs, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    events = worker.ask(jobs.Request("read", str(tmp_path), "One two three."))
    assert events[-1]["state"] == "failed"
    assert not events[-1]["error"].startswith("This failed")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            "The tokenizer has no chat template. Use --chat-template FILE to give one, or --chat-template none.",
            "The tokenizer has no chat template. Turn off “Chat template”.",
        ),
        (
            "The template would be applied twice. Use --chat-template none, or give the question alone.",
            "The template would be applied twice. Turn off “Chat template”, or give the question alone.",
        ),
        ("Fix the messages, or use --chat-template none.", "Fix the messages, or turn off “Chat template”."),
        ("It rejected them. Try --chat-template FILE.", "It rejected them. Turn off “Chat template”."),
    ],
)
def test_a_refusal_names_the_pages_control(jobs, error, said):
    job = jobs.Job(jobs.Request("answer", "demo-qwen3", "Hi"), error=error)
    assert jobs.on_screen(job) == said


def test_a_refusal_that_names_another_option_shows_the_command(jobs):
    job = jobs.Job(jobs.Request("read", "demo-qwen3", "Hi"), error="It is too large. Use another --dtype.")
    assert "The options are those of this command: internal-policy scan --model demo-qwen3" in jobs.on_screen(job)


def test_a_second_worker_is_refused_while_one_runs(worker, cache):
    second = Process(cache)
    assert second.first["error"] == module.OCCUPIED
    assert second.process.wait(60) == 0
    second.end()


def test_a_worker_ends_after_a_while_without_requests(tmp_path):
    code = "from internal_policy.cli import worker; worker.main(idle=0.1)"
    environment = {**os.environ, "INTERNAL_POLICY_CACHE": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment) as process:
        assert process.wait(60) == 0


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'internal_policy.cli.worker'], stdin=subprocess.PIPE)\n"
        "time.sleep(600)"
    )
    environment = {**os.environ, "INTERNAL_POLICY_CACHE": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        assert json.loads(parent.stdout.readline())["state"] == "ready"
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == b""  # it ends when the child, which also writes to it, has ended


@pytest.fixture
def doing(jobs, monkeypatch) -> Iterator[list[str]]:
    """Replace the worker by another program."""
    begin, code = subprocess.Popen, ["import time; time.sleep(60)"]
    monkeypatch.setattr(subprocess, "Popen", lambda _, **given: begin([sys.executable, "-c", code[0]], **given))
    monkeypatch.setattr(jobs, "_latest", [])
    yield code
    for one in jobs._latest:
        one.end()


@pytest.fixture
def tab(jobs, monkeypatch) -> Callable[[list[str]], None]:
    """Switch to another tab."""
    return lambda one: monkeypatch.setattr(jobs, "_tab", lambda: one)


def over(job: Any) -> Any:
    end = time.monotonic() + 30
    while not job.over and time.monotonic() < end:
        time.sleep(0.02)
    assert job.over
    return job


def test_a_killed_worker_is_reported_and_replaced_at_the_next_prompt(jobs, doing, tab):
    tab([])
    job = jobs.ask(jobs.Request("answer", "demo-qwen3", "Hi"))
    jobs.worker_of(job).process.kill()
    assert over(job).error == "The worker ended (exit code -9). Ask again to start a new one."
    assert not jobs.ask(job.request).over


def test_a_worker_that_does_not_stop_is_killed(jobs, doing, tab, monkeypatch):
    tab([])
    monkeypatch.setattr(jobs, "GRACE", 0.0)
    job = jobs.ask(jobs.Request("answer", "demo-qwen3", "Hi"))
    one = jobs.worker_of(job)
    one.stop()
    time.sleep(0.01)
    one.stop()
    assert over(job).state == "stopped"
    assert not one.running


def test_another_tab_waits_for_a_busy_worker_and_takes_over_an_idle_one(jobs, doing, tab):
    doing[0] = (
        "import json\n"
        "print(json.dumps({'state': 'ready', 'memory': 1}), flush=True)\n"
        "while input(): print(json.dumps({'state': 'done', 'memory': 2}) if input() else 0, flush=True)"
    )
    first, second = [], ["another"]
    tab(first)
    job = jobs.ask(jobs.Request("answer", "demo-qwen3", "Hi"))
    one = jobs.worker_of(job)
    tab(second)
    with pytest.raises(jobs.InputError, match="Another tab is measuring a prompt"):
        jobs.ask(job.request)
    one._send({"go": "on"})
    assert over(job).state == "done"
    assert jobs.worker_of(jobs.ask(job.request)) is one
    jobs._release(first)
    assert one.running
    jobs._release(second)
    assert not one.running


def test_a_worker_ends_with_its_tab(jobs, doing, tab):
    tab(mine := ["a tab"])
    job = jobs.ask(jobs.Request("answer", "demo-qwen3", "Hi"))
    one = jobs.worker_of(job)
    jobs._release(mine)  # what Streamlit calls when a tab is closed
    assert over(job).state == "failed"
    assert not one.running
