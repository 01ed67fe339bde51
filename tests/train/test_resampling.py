"""Prompts whose responses have the same reward are replaced by others, a limited number of times."""

import re
from typing import Any

import pytest
import torch
from datasets import Dataset
from trainer import PROMPTS, Fixed, odd, trainer, weights

from internal_policy.errors import InputError
from internal_policy.train import resampling, spread
from internal_policy.train.resampling import Batch, Response

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


class Kept(Fixed):
    """Keeps the prompts of every call of the sampler, and the batches."""

    def _generate_single_turn(self, prompt_ids: Any, *more: Any, **named: Any) -> Any:
        vars(self).setdefault("asked", []).append([tuple(ids) for ids in prompt_ids])
        return super()._generate_single_turn(prompt_ids, *more, **named)

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        vars(self).setdefault("batches", []).append(batch)
        return batch


def logged(run: Any, name: str) -> list[float]:
    return [row[name] for row in run.state.log_history if name in row]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Any:
    """A trainer of 4 steps, with up to 3 draws in each."""
    made = trainer(tmp_path_factory.mktemp("run"), tokenizer, kind=Kept, reward=odd, resample=3)
    made.train()
    return made


def test_draws_have_as_many_prompts_as_lack_spread(run):
    draws, resampled = (logged(run, name) for name in ("draws", "resampled"))
    lacking = [round(4 * share) for share in logged(run, "groups_without_spread")]
    sizes = [len(asked) // 2 for asked in run.asked]
    for number, step in zip(draws, lacking, strict=True):
        first, *drawn = [sizes.pop(0) for _ in range(1 + int(number))]
        assert first == 4
        assert drawn[:1] == ([step] if step else [])
        assert drawn == sorted(drawn, reverse=True)
        assert sum(drawn) == resampled.pop(0)
    assert not sizes
    assert max(draws) > 0


def test_no_prompt_is_drawn_twice_in_a_step(run):
    asked = list(run.asked)
    for number in logged(run, "draws"):
        step = [prompt for _ in range(1 + int(number)) for prompt in asked.pop(0)[::2]]
        assert len(set(step)) == len(step)
    assert not asked


def test_prompts_with_spread_stay_and_others_gain_it(run):
    for batch, more, share in zip(run.batches, logged(run, "resampled"), logged(run, "rows_trained"), strict=True):
        assert share == pytest.approx((batch["advantages"] != 0).float().mean().item())
        assert share == 1 or more == len(PROMPTS) - 4  # no prompts were left
    first = [1 - share for share in logged(run, "groups_without_spread")]
    assert sum(logged(run, "rows_trained")) > sum(first)


def test_advantages_are_those_of_the_responses_that_are_trained_on(run):
    rewards = torch.tensor(list(run._logs["rewards"]["odd"])).view(-1, 2)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(run.batches[-1]["advantages"].view(-1, 2), expected)


def test_the_first_batch_is_logged(tmp_path, tokenizer):
    found = []
    for number in (0, 3):
        once = trainer(tmp_path, tokenizer, kind=Fixed, reward=odd, resample=number, max_steps=2)
        once.train()
        (row,) = [row for row in once.state.log_history if "reward" in row]
        found.append({name: row[name] for name in ("reward", "entropy", "completions/mean_length")})
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["rloo", pytest.param("bupo", marks=pytest.mark.slow)])
def test_a_resumed_run_draws_the_same_prompts(tmp_path, tokenizer, method):
    options = {"method": method, "schedule": ["1.resid_post:1"], "max_steps": 6, "resample": 2, "reward": odd}
    whole = trainer(tmp_path, tokenizer, **options, save_strategy="steps", save_steps=4)
    whole.train()
    assert sum(logged(whole, "draws")) > 0
    resumed = trainer(tmp_path, tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    after = weights(resumed.model)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(whole.model).items())
    assert logged(whole, "resampled")[2:] == logged(resumed, "resampled")[2:]


def batch(rewards: list[float], start: int) -> Batch:
    rows = [Response({"prompt": str(start + n)}, [1], [2], "", None) for n in range(len(rewards))]
    return Batch(rows, torch.tensor(rewards).float()[:, None])


def test_groups_without_spread_are_replaced_in_order():
    found = batch([1, 1, 0, 1, 0, 0, 0, 0], 0).replaced(batch([0, 0, 1, 0, 0, 1], 10), 2)
    assert [row.problem["prompt"] for row in found.responses] == ["12", "13", "2", "3", "14", "15", "6", "7"]
    assert found.rewards.flatten().tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    assert spread.without_spread(found.rewards, 2).tolist() == [False, False, False, True]


def test_the_order_depends_on_seed_and_step():
    orders = [list(resampling.order(20, seed, step)) for seed, step in ((0, 4), (0, 4), (0, 5), (1, 4))]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    assert sorted(orders[0]) == list(range(20))


def test_data_that_cannot_be_drawn_from_is_refused(tmp_path, tokenizer):
    made = trainer(tmp_path, tokenizer)
    stream = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]).to_iterable_dataset()
    made.args.resample = 1
    with pytest.raises(InputError, match=re.escape("resample needs a data set with a length.")):
        type(made)(made.model, odd, made.args, train_dataset=stream, processing_class=tokenizer)


def test_reinforce_plus_plus_does_not_resample(tmp_path, tokenizer):
    with pytest.raises(InputError, match=re.escape("method reinforce++ doesn't use resample, which is 2. Remove it.")):
        trainer(tmp_path, tokenizer, method="reinforce++", resample=2)
