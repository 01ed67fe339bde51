"""The checkpoints of a training run are found in a folder or on the hub, and those that aren't whole are left out."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.models import series

DEMO = bundle.DATA / "models" / "demo-qwen3"
COMMITS = {"main": "0" * 40, "step1": "1" * 40, "step20": "2" * 40, "stage1-step1000-tokens4B": "3" * 40}


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with three checkpoints and other folders, in which the weights are links."""
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100"):
        (tmp_path / name).mkdir()
        for path in DEMO.iterdir():
            (tmp_path / name / path.name).symlink_to(path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-40", 40),
        ("step1000", 1000),
        ("global_step_20", 20),
        ("stage1-step1000-tokens4B", 1000),
        ("iter_0000300", 300),
        ("epoch_2-step_30", 30),
        ("500", 500),
        ("runs", None),
        ("v2", None),
        (f"step{'9' * 40}", None),
    ],
)
def test_the_step_is_in_the_name(name, step):
    assert series.step_of(name) == step


def test_the_checkpoints_in_a_folder_are_in_order_of_their_steps(place):
    found = series.find(str(place))
    assert [(one.step, one.name) for one in found.members] == [
        (9, "checkpoint-9"), (10, "checkpoint-10"), (100, "checkpoint-100")
    ]  # fmt: skip
    assert found.skipped == []


def test_checkpoints_that_are_not_whole_are_left_out_with_the_reason(place):
    cut = place / "checkpoint-9" / "model.safetensors"
    data = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(data[:-1])
    (place / "checkpoint-10" / "config.json").unlink()
    (place / "checkpoint-200").mkdir()
    found = series.find(str(place))
    assert [one.step for one in found.members] == [100]
    assert [said.split(",")[0] for said in found.skipped] == [f"Skipping checkpoint-{n}" for n in (10, 200, 9)]
    assert found.skipped[-1].endswith("model.safetensors is cut short.")


def test_shards_without_their_index_are_not_whole(place):
    one = place / "checkpoint-9"
    (one / "model.safetensors").rename(one / "model-00001-of-00002.safetensors")
    assert series.incomplete(one) == "model.safetensors.index.json is missing."


def test_a_folder_without_whole_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="There are no complete checkpoints"):
        series.find(str(tmp_path))
    (tmp_path / "step5").mkdir()
    with pytest.raises(InputError, match="Skipping step5, which isn't complete: There is no model"):
        series.find(str(tmp_path))


def test_two_checkpoints_of_one_step_are_refused(place):
    shutil.copytree(place / "checkpoint-9", place / "step9", symlinks=True)
    with pytest.raises(InputError, match="Both checkpoint-9 and step9 are step 9"):
        series.find(str(place))


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(None, 1, [9, 10, 100]), ("10-", 1, [10, 100]), ("9,100", 1, [9, 100]), (None, 10, [10, 100]), ("0-10", 5, [10])],
)
def test_steps_are_chosen_by_ranges_and_multiples(place, steps, every, expected):
    assert [one.step for one in series.chosen(series.find(str(place)).members, steps, every)] == expected


@pytest.mark.parametrize(("steps", "every"), [("x", 1), ("10-5", 1), ("-3", 1), ("11", 1), (None, 0)])
def test_steps_that_cannot_be_chosen_are_refused(place, steps, every):
    with pytest.raises(InputError, match=r"--steps|--every-step"):
        series.chosen(series.find(str(place)).members, steps, every)


@pytest.fixture
def hub(monkeypatch) -> Iterator[None]:
    """A server that lists the branches and tags of org/model, as the Hub does."""

    class Refs(BaseHTTPRequestHandler):
        def do_GET(self):
            refs = [{"name": name, "ref": f"refs/{name}", "targetCommit": to} for name, to in COMMITS.items()]
            known = self.path.startswith("/api/models/org/model/refs")
            body = json.dumps({"branches": refs[:2], "tags": refs[2:], "converts": []} if known else {}).encode()
            self.send_response(200 if known else 404)
            if not known:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refs)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def test_branches_and_tags_of_a_hub_model_are_pinned_to_their_commits(hub):
    found = series.find("org/model@step*")
    assert [(one.step, one.revision) for one in found.members] == [(1, "1" * 40), (20, "2" * 40)]
    assert found.place == "org/model@step*"
    assert [one.step for one in series.find("org/model@stage1-step*").members] == [1000]
    assert series.find("org/model@*").skipped == ["Skipping main, whose name has no step."]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("org/model@epoch*", "has no branch or tag with a step that matches 'epoch\\*'. It has main,"),
        ("org/none@step*", "Can't find a folder or hub model 'org/none'"),
        ("org/model", "There is no folder 'org/model'. Give a folder of checkpoints, or a hub model"),
    ],
)
def test_a_hub_model_without_such_checkpoints_is_refused(hub, name, said):
    with pytest.raises(InputError, match=said):
        series.find(name)


def test_a_hub_that_cannot_be_reached_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="because the hub can't be reached"):
        series.find("org/model@step*")
