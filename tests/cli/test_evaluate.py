"""Evaluating a model or an internal policy."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SUMS, interrupt_the_second_batch, jsonl, numbers, one_sentence

from internal_policy.__main__ import main
from internal_policy.bundle import DATA
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")


def test_all_bundled_problems_are_another_evaluation_than_the_default_ones(monkeypatch):
    from internal_policy.cli import evaluate
    from internal_policy.scans import claims

    claimed = []
    monkeypatch.setattr(claims, "claim", lambda *given: claimed.append(store.digest(given[-1])))
    monkeypatch.setattr(evaluate, "_sample", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    bundled = str(DATA / "problems" / "heldout.jsonl")
    for words in ([], ["--problems", bundled, "--limit", "64"], ["--problems", bundled]):
        assert main(["evaluate", *words]) == 130
    assert claimed[0] == claimed[1] != claimed[2]


@pytest.fixture
def evaluated(folder, problems) -> list[str]:
    options = ["--model", str(folder), "--max-new-tokens", "6", "--batch-size", "4", "--samples", "2"]
    return ["evaluate", "--problems", str(problems), *options]


def right(monkeypatch) -> None:
    """Mark by the length of the response: a tiny random model solves nothing."""
    monkeypatch.setattr("internal_policy.tasks.marking.reward", lambda response, _: float(len(response) % 2))


def test_an_evaluation_writes_its_curves_and_responses(evaluated, here, capsys, monkeypatch):
    right(monkeypatch)
    assert main([*evaluated, "--output", "mine", "--label", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "tiny" in printed
    assert "Pass@2" in printed
    rollouts = pd.read_parquet(here / "mine" / "rollouts.parquet")
    assert (rollouts["problems"] == "problems").all()
    assert rollouts["sample"].tolist() == [0, 1] * len(SUMS)
    curves = pd.read_parquet(here / "mine" / "pass_at_k.parquet")
    assert curves.columns.tolist() == ["label", "problems", "k", "mean", "low", "high"]
    assert curves["label"].tolist() == ["tiny", "tiny"]
    by_problem = rollouts.groupby("problem")["reward"]
    assert curves["mean"].tolist() == pytest.approx([by_problem.mean().mean(), by_problem.max().mean()])


def test_the_same_evaluation_is_answered_from_its_folder_under_another_label_too(evaluated, capsys, monkeypatch):
    assert main([*evaluated, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(torch.nn.Module, "__call__", None)
    assert main([*evaluated, "--json", "--label", "other"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["label"] == "other"
    assert pd.read_parquet(Path(again["output"]) / "pass_at_k.parquet")["label"].unique().tolist() == ["other"]
    assert {**first, "label": ""} == {**again, "label": ""}
    assert main(["ls", "--json"]) == 0
    listed = [row for row in json.loads(capsys.readouterr().out) if not row["bundled"]]
    assert [(row["kind"], row["folder"], row["state"]) for row in listed] == [
        ("evaluation", first["output"], "finished")
    ]


def test_an_interrupted_evaluation_goes_on_and_equals_an_undisturbed_one(evaluated, here, monkeypatch):
    assert main([*evaluated, "--output", "whole"]) == 0
    first_prompts = interrupt_the_second_batch(monkeypatch)
    assert main([*evaluated, "--output", "mine"]) == 130
    assert not (here / "mine").exists()
    assert main([*evaluated, "--output", "mine"]) == 0
    assert first_prompts == [0, 4, 4, 8, 12, 16]
    assert numbers(here / "mine") == numbers(here / "whole")
    assert not list((store.root() / "rollouts").iterdir())


def test_sets_of_problems_have_a_curve_each_and_one_together(evaluated, problems, here, capsys, monkeypatch):
    right(monkeypatch)
    other = problems.with_name("other.jsonl")
    other.write_text(problems.read_text())
    words = [evaluated[0], "--problems", str(problems), str(other), *evaluated[3:], "--limit", "3"]
    assert main([*words, "--at", "0.resid_post", "--readout", "norm", "--label", "a", "--output", "mine"]) == 0
    assert "other" in capsys.readouterr().out
    curves = pd.read_parquet(here / "mine" / "pass_at_k.parquet")
    assert curves["label"].unique().tolist() == ["a, problems", "a, other", "a, all"]
    means = curves[curves["k"] == 1].set_index("problems")["mean"]
    assert means["all"] == pytest.approx((means["problems"] + means["other"]) / 2)


def test_responses_without_a_box_are_not_marked_instead_of_0_percent(evaluated, capsys):
    assert main(evaluated) == 0
    printed = capsys.readouterr().out
    assert "not marked" in printed
    assert "0.0 to" not in printed
    assert main([*evaluated, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluated"][0]["marked"] is False
    assert r"No response to problems has an answer in \boxed{}, so none was marked." in printed


def test_an_internal_policy_names_its_curve(evaluated, folder, capsys):
    assert main([*evaluated, "--limit", "1", "--at", "0.resid_post", "--readout", "norm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label"] == f"{folder.name}@0.resid_post, norm"
    assert found["evaluated"][0]["avg"]["low"] is None  # one problem has no interval


BAD_EVALUATIONS = {
    "no samples": (["--samples", "0"], "samples is 0; it must be 1 or more"),
    "prose": (
        ["--answer-column", "prose"],
        "can't be marked. Problem 1 has an answer in prose.",
    ),
    "no answers": (
        ["--answer-column", "without"],
        "10 of 10 problems of problems can't be marked. Problem 1 has no answer.",
    ),
    "hook point": (["--at", "5.nowhere"], "nowhere"),
    "twice": (["--problems", "a.jsonl", "a.jsonl"], "a.jsonl is given twice with --problems. Give each set once."),
    "output": (["--output", "/"], "/ isn't empty and contains no evaluation. Choose another --output."),
}


@pytest.mark.parametrize("case", BAD_EVALUATIONS)
def test_a_bad_evaluation_is_refused_in_a_sentence(case, evaluated, problems, here, capsys):
    jsonl(problems, *({**problem, "without": None, "prose": "The sum of both is larger."} for problem in SUMS))
    words, sentence = BAD_EVALUATIONS[case]
    assert main([*evaluated, *words]) == 2
    one_sentence(capsys, sentence, here)


def test_the_folder_of_another_evaluation_is_refused(evaluated, here, capsys):
    assert main([*evaluated, "--output", "mine"]) == 0
    assert main([*evaluated, "--output", "mine", "--seed", "5"]) == 2
    assert "already contains another evaluation with different settings (--seed)" in capsys.readouterr().err
    (here / "mine" / "rollouts.parquet").write_bytes(b"PAR1")
    assert main([*evaluated, "--output", "mine"]) == 2
    assert "rollouts.parquet is damaged. Remove the folder" in capsys.readouterr().err
