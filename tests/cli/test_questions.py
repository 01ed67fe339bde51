"""Which data a question is about, and so which cached answer it has."""

import json
from types import SimpleNamespace

import pytest

from internal_policy.__main__ import main
from internal_policy.cli import prepared, question
from internal_policy.cli.evaluate import Evaluate
from internal_policy.cli.fit_lens import FitLens
from internal_policy.cli.generate import Generate
from internal_policy.cli.scan import Scan
from internal_policy.cli.train import Train

pytestmark = pytest.mark.usefixtures("here")


def published(monkeypatch, revision: str) -> None:
    """Put a data set where the hub would be, at a commit."""
    import datasets

    rows = [{"problem": f"{n} + 1", "answer": f"{n + 1}"} for n in range(3)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_: SimpleNamespace(hash=revision))


def test_a_data_set_of_the_hub_that_changed_is_another_scan(folder, here, capsys, monkeypatch):
    found = []
    for revision in ("1a2b", "1a2b", "3c4d"):
        published(monkeypatch, revision)
        words = ["--problems", "org/sums:main@train", "--limit", "2", "--dry-run", "--json"]
        assert main(["scan", "--model", str(folder), "--max-new-tokens", "6", *words]) == 0
        found.append(json.loads(capsys.readouterr().out)["scan"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("options", [Scan, Generate, Evaluate, FitLens])
def test_the_commit_of_a_data_set_of_the_hub_is_in_every_question(options, monkeypatch):
    published(monkeypatch, "1a2b")
    found = question.of(options(), set(), ["org/sums@train"])
    assert found["content"] == {"org/sums@train": {"revision": "1a2b"}}


def test_a_data_set_of_the_hub_that_changed_is_another_training_run(monkeypatch):
    from internal_policy.cli import train

    published(monkeypatch, "1a2b")
    assert train._question(Train(problems=("org/sums@train",)), {})["content"] == {
        "org/sums@train": {"revision": "1a2b"}
    }


def test_asking_more_leaves_the_first_question_as_it_was_and_keeps_what_was_loaded():
    first = prepared.prepare(Scan(), set(), [])
    config, known = first.config, dict(first.question)
    second = first.asking(layers=[0])
    assert second.question == {**known, "layers": [0]}
    assert first.question == known
    assert second.config is config


def test_several_files_of_rollouts_are_one_question_and_one_file_is_recorded_as_before(folder, here):
    for name in ("a.jsonl", "b.jsonl"):
        (here / name).write_text(json.dumps({"prompt": "a", "response": "b"}))
    one, both = (
        question.of(Scan(model=str(folder), rollouts=names), set(), names, names)
        for names in (("a.jsonl",), ("a.jsonl", "b.jsonl"))
    )
    assert (one["rollouts"], both["rollouts"]) == ("a.jsonl", ["a.jsonl", "b.jsonl"])
    assert {*both["content"]} == {"a.jsonl", "b.jsonl"}
    assert question.all_of(one["rollouts"]) == ("a.jsonl",)
