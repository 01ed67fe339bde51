"""Some responses of a run are kept, with their rewards and advantages."""

import pandas as pd
import pytest
from trainer import Fixed, trainer

from internal_policy.train.samples import SampleLogger, _chosen

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def sampled(folder, tokenizer, steps: int, **options) -> pd.DataFrame:
    """The responses kept every 2 steps of 2 updates each."""
    run = trainer(folder, tokenizer, kind=Fixed, max_steps=2 * steps, **options)
    run.add_callback(SampleLogger(folder, 2, 2, run))
    run.train()
    return pd.read_parquet(folder / "samples.parquet")


def test_the_first_responses_of_a_few_problems_are_kept_every_few_steps(tmp_path, tokenizer):
    rows = sampled(tmp_path, tokenizer, 5)
    assert [*rows.columns] == ["step", "problem", "response", "reward", "advantage"]
    assert rows["step"].tolist() == [step for step in (1, 2, 4, 5) for _ in range(4 * 2)]
    assert rows.groupby(["step", "problem"]).size().tolist() == [2] * 16
    groups = rows.groupby(["step", "problem"])["advantage"]
    assert groups.sum().to_numpy() == pytest.approx(0, abs=1e-5)  # all of a group of 2 are kept
    best = rows.loc[rows.groupby(["step", "problem"])["reward"].idxmax(), "advantage"]
    assert (best >= 0).all()


def batch(**changes) -> dict:
    return {
        "prompt": ["a", "a", "a", "b", "b", "b"],
        "completion": list("uvwxyz"),
        "rewards": {"box": [1.0, 0.0, 1.0, 0.0, 0.0, 0.0], "brief": [0.0, 1.0, 0.0, float("nan"), 1.0, 1.0]},
        "advantages": [0.5, -0.5, 0.0, 0.0, 1.0, 1.0],
        **changes,
    }


def test_the_reward_is_the_weighted_sum_of_those_that_marked_a_response():
    rows = list(_chosen(batch(), [1.0, 0.25]))
    assert [(row["problem"], row["response"]) for row in rows] == [("a", "u"), ("a", "v"), ("b", "x"), ("b", "y")]
    assert [row["reward"] for row in rows] == [1.0, 0.25, 0.0, 0.25]


def test_of_chat_messages_the_users_last_and_the_answer_are_kept():
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "How much?"}]
    answers = [[{"role": "assistant", "content": text}] for text in "uvwxyz"]
    rows = list(_chosen(batch(prompt=[prompt] * 6, completion=answers), [1.0, 1.0]))
    assert [(row["problem"], row["response"]) for row in rows] == [("How much?", "u"), ("How much?", "v")]


@pytest.mark.slow
def test_a_resumed_run_continues_after_the_responses_of_its_checkpoint(tmp_path, tokenizer):
    expected = sampled(tmp_path / "whole", tokenizer, 4)
    folder = tmp_path / "part"
    sampled(folder, tokenizer, 3, save_strategy="steps", save_steps=4)
    run = trainer(folder, tokenizer, kind=Fixed, max_steps=8)
    run.add_callback(SampleLogger(folder, 2, 2, run))
    run.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "samples.parquet"), expected)
