"""Held-out problems are solved during training, without changing it."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_model
from trainer import Fixed, trainer, weights

from internal_policy.errors import InputError
from internal_policy.look.runs import EXAMS
from internal_policy.scans import store
from internal_policy.tasks.problems import Message, Problem
from internal_policy.train import checkpoints, exam
from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.callbacks import RunLogger, ScanSchedule
from internal_policy.train.exam import Exam, Examiner

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
ONE, TWO, THREE = (Problem((Message(role="user", content=f"What is {n} + 1?"),), str(n + 1)) for n in range(3))
OPTIONS: dict[str, Any] = {"chat": {}, "temperature": 1.0, "max_new_tokens": 4, "seed": 0}


def examined(folder, given: Exam, marks: Any, kept: Any = None, **options: Any) -> tuple[Any, Examiner]:
    """A trainer of steps of 2 updates with an examiner; `marks` solves the exam, or has the marks of each."""
    left = iter(() if callable(marks) else marks)
    solve: Any = marks if callable(marks) else lambda _: next(left)
    examiner = Examiner(folder, given, 2, solve, (lambda _: None) if kept is None else kept)
    logger = RunLogger(folder, 2, (), ScanSchedule((), None, 0))
    kind = options.pop("kind", Fixed)
    return trainer(folder, options.pop("tokenizer"), kind=kind, callbacks=[logger, examiner], **options), examiner


def counted(*numbers: int) -> list[Any]:
    """Marks of exams of a problem with 4 responses, so many of them correct."""
    return [([number], [0]) for number in numbers]


@pytest.mark.slow
def test_a_run_with_exams_ends_with_the_weights_of_one_without(tmp_path, tokenizer):
    models = [tiny_model("qwen3") for _ in range(2)]
    trainer(tmp_path / "without", tokenizer, models[0], max_steps=2).train()
    solve = partial(exam.solve, tokenizer=tokenizer, problems=[ONE, TWO], samples=2, batch_size=3, **OPTIONS)
    given = Exam({"sums": [ONE, TWO]}, every=1, samples=2)
    options = {"tokenizer": tokenizer, "model": models[1], "max_steps": 2, "kind": BuPOTrainer}
    run, examiner = examined(tmp_path / "with", given, solve, **options)
    run.train()
    assert examiner.table["step"].tolist() == [0, 1]
    for name, weight in weights(models[0]).items():
        assert torch.equal(weights(models[1])[name], weight), name


def test_processes_divide_an_exam_and_find_what_one_finds(tokenizer, monkeypatch):
    model, problems = tiny_model("qwen3"), [ONE, TWO, THREE]
    monkeypatch.setattr(exam, "generate", marked(exam.generate))
    whole = exam.solve(model, tokenizer, problems, 3, batch_size=2, **OPTIONS)
    assert sum(whole[0]) > 0
    parts: list[Any] = []
    monkeypatch.setattr(exam, "gather_object", lambda mine: parts.extend(mine) or parts)
    divided = None
    for rank in range(2):
        state = SimpleNamespace(process_index=rank, num_processes=2)
        monkeypatch.setattr(exam, "PartialState", lambda state=state: state)
        divided = exam.solve(model, tokenizer, problems, 3, batch_size=2, **OPTIONS)
    assert len(parts) == 9
    assert divided == whole


def marked(generate: Any) -> Any:
    """`generate`, with a reward for each response that depends on its tokens."""

    def sample(*given: Any, **options: Any) -> Any:
        for batch in generate(*given, **options):
            yield [SimpleNamespace(reward=sum(one.response_ids) % 2, finished=one.finished) for one in batch]

    return sample


def test_an_exam_has_a_row_for_each_set_and_one_for_all():
    given = Exam({"a": [ONE, TWO], "b": [THREE]}, samples=4)
    first = exam.results(given, 0, ([4, 1, 0], [0, 0, 2]), pd.DataFrame()).set_index("problems")
    assert first["avg_at_k"].to_dict() == {"a": 0.625, "b": 0.0, "all": pytest.approx(5 / 12)}
    assert first["pass_at_k"].to_dict() == {"a": 1.0, "b": 0.0, "all": pytest.approx(2 / 3)}
    assert first["cut"].to_dict() == {"a": 0.0, "b": 0.5, "all": pytest.approx(2 / 12)}
    assert first["number"].to_dict() == {"a": 2, "b": 1, "all": 3}
    assert first["change"].isna().all()
    assert (first.loc[["a", "all"], "avg_at_k_low"] < first.loc[["a", "all"], "avg_at_k"]).all()
    later = exam.results(given, 5, ([4, 3, 2], [0, 0, 0]), first.reset_index()).set_index("problems")
    assert later["change"].to_dict() == {"a": 0.25, "b": 0.5, "all": pytest.approx(4 / 12)}
    assert later["change_low"].iloc[-1] < 4 / 12 < later["change_high"].iloc[-1]
    assert later["correct"].iloc[-1] == [4, 3, 2]


def test_exams_are_held_at_step_0_every_few_steps_and_at_the_end(tmp_path, tokenizer):
    run, _ = examined(tmp_path, Exam({"a": [ONE]}, 2, 4), counted(1, 2, 3), tokenizer=tokenizer, max_steps=6)
    run.train()
    written = pd.read_parquet(tmp_path / EXAMS)
    assert written["step"].tolist() == [0, 2, 3]
    assert written["avg_at_k"].tolist() == [0.25, 0.5, 0.75]


@pytest.mark.slow
def test_a_resumed_run_neither_loses_nor_repeats_an_exam(tmp_path, tokenizer):
    given, options = Exam({"a": [ONE]}, 1, 4), {"tokenizer": tokenizer, "max_steps": 6}
    run, _ = examined(tmp_path, given, counted(0, 1, 2, 3), **options, save_strategy="steps", save_steps=4)
    run.train()
    undisturbed = pd.read_parquet(tmp_path / EXAMS)
    resumed, examiner = examined(tmp_path, given, counted(3), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed = pd.read_parquet(tmp_path / EXAMS)
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), undisturbed.drop(columns="seconds"))
    finished, examiner = examined(tmp_path, given, [], **options)
    finished.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert examiner.table["step"].tolist() == [0, 1, 2, 3]


def test_the_model_of_the_best_exam_is_kept_once_its_step_is_logged(tmp_path, tokenizer):
    kept = []

    def keep(table: pd.DataFrame) -> None:
        kept.append((int(table["step"].max()), len(pd.read_parquet(tmp_path / "metrics.parquet"))))

    given = Exam({"a": [ONE]}, 1, 4, keep_best=True)
    run, _ = examined(tmp_path, given, counted(1, 1, 3, 2, 3), keep, tokenizer=tokenizer, max_steps=8)
    run.train()
    assert kept == [(2, 2)]  # neither the first model, nor a tie


def test_training_stops_with_a_checkpoint_when_it_has_lost_too_much(tmp_path, tokenizer):
    given, options = Exam({"a": [ONE]}, 1, 4, stop_below=0.75), {"tokenizer": tokenizer, "max_steps": 8}
    run, examiner = examined(tmp_path, given, counted(4, 3, 2), **options)
    run.train()
    assert run.state.global_step == 4
    assert list(checkpoints.found(tmp_path)) == [4]
    assert "stopped after step 2: Avg@4 fell from 100.0% to 50.0%, which is below 0.75 times its" in examiner.stopped


@pytest.mark.slow
def test_a_loss_at_the_last_step_does_not_stop_a_run_that_is_over(tmp_path, tokenizer):
    given = Exam({"a": [ONE]}, 2, 4, stop_below=0.75)
    run, examiner = examined(tmp_path, given, counted(4, 1), tokenizer=tokenizer, max_steps=4)
    run.train()
    assert not examiner.stopped


def test_a_problem_that_does_not_fit_the_model_is_refused_with_its_set(tokenizer):
    text = tiny_model("qwen3").config
    long = Problem((Message(role="user", content="x" * 9000),), "1")
    with pytest.raises(InputError, match=r"--eval-problems, mine: Problem 2 has .* positions"):
        exam.check(Exam({"mine": [ONE, long]}), tokenizer, {}, text, 16)


def test_the_table_that_a_run_reads_back_has_its_counts(tmp_path):
    rows = exam.results(Exam({"a": [ONE, TWO]}, samples=4), 0, ([1, 2], [0, 0]), pd.DataFrame())
    rows.to_parquet(tmp_path / EXAMS)
    first = store.read_part(tmp_path / EXAMS).to_pandas()
    again = exam.results(Exam({"a": [ONE, TWO]}, samples=4), 1, ([3, 2], [0, 0]), first)
    assert np.isclose(again["change"], 0.25).all()
