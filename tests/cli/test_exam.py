"""`internal-policy train` holds exams on held-out problems, and refuses those that it can't mark."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import jsonl

from internal_policy import bundle
from internal_policy.__main__ import main
from internal_policy.cli import console, exam, train, train_report
from internal_policy.cli.train import Train
from internal_policy.look.runs import RunTables
from internal_policy.models import loading
from internal_policy.train import checkpoints, resume
from internal_policy.train import exam as exams

HELD_OUT = str(bundle.DATA / "problems" / "sums-heldout.jsonl")
FEW = ["--prompts", "2", "--samples", "2", "--micro-batch", "4", "--max-new-tokens", "4", "--scan-every", "0"]
FEW += ["--method", "grpo", "--steps", "2", "--eval-every", "1"]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))


def rising(monkeypatch, *shares: float) -> None:
    """Let exams find these shares of the responses to each problem correct, one after another."""
    left = iter(shares)

    def solve(model: Any, tokenizer: Any, problems: Any, samples: int, **_: Any) -> exams.Marks:
        share = next(left)
        return [round(share * samples)] * len(problems), [0] * len(problems)

    monkeypatch.setattr(exams, "solve", solve)


def test_a_run_writes_its_exams_and_the_model_of_the_best(tmp_path, capsys, monkeypatch):
    rising(monkeypatch, 0.25, 0.75, 0.5)
    folder = tmp_path / "run"
    assert main(["train", *FEW, "--keep-best", "--json", "-o", str(folder)]) == 0
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert np.allclose([row["avg_at_k"] for row in printed["exams"]], [0.25, 0.75, 0.5])
    assert printed["best_model"] == str(folder / "best")
    assert f"Step 1 is the best so far (Avg@8 75.0%). Its model is {folder / 'best'}" in " ".join(said.err.split())
    assert checkpoints.is_whole(folder / "best")
    card = (folder / "best" / "README.md").read_text()
    assert "the model after step 1, kept because its Avg@8 (75.0%) is the highest of 2 exams" in card
    assert "step 1 trains the whole policy" in card
    assert "from 25.0% (step 0) to 50.0% (step 2)" in (folder / "model" / "README.md").read_text()
    table = RunTables(folder, "run").exams()
    assert table["number"].tolist() == [64] * 3
    assert np.allclose(table["reward"].iloc[1:], pd.read_parquet(folder / "metrics.parquet")["reward"])
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Avg@8 on the exam of 64 problems rose from 25.0%" in " ".join(shown.split())
    assert f"Model of the best exam: {folder / 'best'}\n" in shown
    assert main(["rm", str(folder), "--yes"]) == 0
    assert not folder.exists()


@pytest.mark.slow
def test_a_run_that_loses_too_much_stops_with_a_sentence_and_can_go_on(tmp_path, capsys, monkeypatch):
    rising(monkeypatch, 0.5, 0.25, 0.25)
    words = ["train", *FEW, "--eval-problems", HELD_OUT, "--eval-samples", "4", "-o", str(tmp_path / "run")]
    assert main([*words, "--stop-below", "0.8"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: Training stopped after step 1: Avg@4 fell from 50.0% to 25.0%" in said
    assert f"The checkpoint is {tmp_path / 'run' / 'checkpoint-1'}." in said
    assert not (tmp_path / "run" / "model").exists()
    assert main([*words, "--resume"]) == 0
    assert pd.read_parquet(tmp_path / "run" / "evaluations.parquet")["step"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--eval-problems", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--eval-problems", "{unanswered}"], "1 of 2 problems of unanswered can't be marked. Problem 2 has no answer"),
        (["--eval-problems", "{empty}"], "empty.jsonl"),
        (["--eval-problems", HELD_OUT, HELD_OUT], "is given twice"),
        (["--eval-problems", HELD_OUT, "--eval-every", "0"], "--eval-every is 0. Use a number from 1"),
        (["--eval-problems", HELD_OUT, "--eval-samples", "0"], "--eval-samples is 0. Use a number from 1"),
        (["--eval-problems", HELD_OUT, "--stop-below", "1.5"], "--stop-below is 1.5. Use a number above 0, at most 1"),
        (["--eval-problems", "{long}"], "--eval-problems, long: Problem 1 has"),
        (["--keep-best"], "--keep-best needs held-out problems. Add --eval-problems FILE."),
        (["--eval-every", "5", "--problems", HELD_OUT], "--eval-every needs held-out problems"),
    ],
)
def test_exams_that_cannot_be_held_are_refused_before_the_model_is_loaded(
    arguments, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loading, "load_model", None)
    jsonl(tmp_path / "unanswered.jsonl", {"problem": "1 + 1", "answer": "2"}, {"problem": "1 + 2"})
    jsonl(tmp_path / "long.jsonl", {"problem": "1 + 1 " * 900, "answer": "2"})
    (tmp_path / "empty.jsonl").touch()
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("unanswered", "empty", "long")}
    words = [word.format(**files) for word in arguments]
    assert main(["train", "--layer", "3", "-o", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_problems_that_are_also_trained_on_are_pointed_out(tmp_path, capsys):
    options = Train(eval_problems=(HELD_OUT,), eval_every=5)
    sets = exam.sets_of(options)
    (problems,) = sets.values()
    assert exam.exam_of(options, sets, problems[:3]).every == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "3 of 200 problems of sums-heldout are also in --problems, so this exam tests memory too." in said


def test_the_bundled_problems_have_an_exam_of_their_own():
    assert {name: len(problems) for name, problems in exam.sets_of(Train(eval_every=5)).items()} == {"sums-heldout": 64}
    assert exam.sets_of(Train()) == {}


def test_another_exam_is_another_run_but_an_earlier_version_had_none(tmp_path):
    plain, other = (train._question(Train(eval_problems=problems), {}) for problems in ((), (HELD_OUT,)))
    assert resume.difference(plain, other) == "--eval-problems"
    assert resume.difference({name: plain[name] for name in plain if name not in exam.OPTIONS}, plain) is None
    assert train._question(Train(eval_problems=(HELD_OUT,), stop_below=0.5), {}) == other


def test_the_line_of_a_step_says_the_last_score():
    row = {"step": 12, "phase": "final", "target": "final", "reward": 0.5, "exam": 0.25, "exam_step": 10}
    assert train_report.in_words(row) == "whole policy: reward 0.50, exam 25.0% (step 10)"


def test_a_table_of_many_exams_shows_the_first_the_last_and_the_best(capsys):
    steps = np.arange(100)
    bounds = {f"{name}{end}": 0.5 for name in ("avg_at_k", "pass_at_k") for end in ("", "_low", "_high")}
    table = pd.DataFrame({"step": steps, "problems": "a", "samples": 4, "reward": 0.5, **bounds})
    table["avg_at_k"] = np.where(steps == 33, 0.9, 0.5)
    console.uncut(exam.table(table))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [int(words[0]) for words in lines if words and words[0].isdigit()]
    assert (shown[0], shown[-1], len(shown)) == (0, 99, 12)
    assert next(words for words in lines if words[:1] == ["33"])[-1] == "best"
