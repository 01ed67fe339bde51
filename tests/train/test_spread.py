"""Responses that the gradient doesn't depend on are left out of the loss, and the weights stay the same."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from conftest import tiny_model
from trainer import PROMPTS, Fixed, odd, trainer, weights
from transformers import AutoModelForCausalLM

from internal_policy.models.hooks import HookPoint
from internal_policy.train import spread
from internal_policy.train.limits import CHOICES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
ONE, slow = "1.resid_post", pytest.mark.slow


class All(Fixed):
    """Leaves out nothing."""

    def _packed(self, passes):
        return passes


class Counted(Fixed):
    """Keeps the number of responses, and of tokens that aren't masked, of every pass."""

    def _compute_loss(self, model, inputs):
        vars(self).setdefault("counts", []).append((len(inputs["advantages"]), int(inputs["completion_mask"].sum())))
        return super()._compute_loss(model, inputs)


def logged(run: Any, name: str) -> list[float]:
    return [row[name] for row in run.state.log_history if name in row]


def compared(tmp_path: Any, tokenizer: Any, **options: Any) -> Any:
    """A trainer that left out responses, after checking that the weights equal those of one that didn't."""
    tied = options.pop("tie_word_embeddings", False)
    before, runs = weights(tiny_model("qwen3", tie_word_embeddings=tied)), []
    for kind in (Counted, All):
        model = tiny_model("qwen3", tie_word_embeddings=tied)
        given = {"reward": odd, "optim": "sgd", "learning_rate": 0.1, "schedule": [f"{ONE}:2"], **options}
        runs.append(trainer(tmp_path / kind.__name__, tokenizer, model, kind=kind, **given))
        runs[-1].train()
    ours, whole = (weights(run.model) for run in runs)
    moved = max((whole[name] - before[name]).abs().max().item() for name in whole)
    assert moved > 1e-4
    for name in whole:
        assert (ours[name] - whole[name]).abs().max() < 2e-5 * moved  # TRL's head is float32
    assert any(share < 1 for share in logged(runs[0], "rows_trained"))


# weights


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 2, "gradient_accumulation_steps": 2, "max_steps": 16},
        pytest.param({"num_iterations": 2, "gradient_accumulation_steps": 8, "max_steps": 4}, marks=slow),
        pytest.param({"num_iterations": 2, "gradient_accumulation_steps": 1, "max_steps": 32}, marks=slow),
        pytest.param(
            {"per_device_train_batch_size": 1, "steps_per_generation": 8, "gradient_accumulation_steps": 4}, marks=slow
        ),
        pytest.param({"scale_rewards": "batch", "tie_word_embeddings": True}, marks=slow),
        pytest.param({"scale_rewards": "none", "epsilon_high": 0.3, "delta": 1.5}, marks=slow),
        pytest.param({"multi_objective_aggregation": "normalize_then_sum", "loss_type": "bnpo"}, marks=slow),
        pytest.param({"method": "rloo"}, marks=slow),
        pytest.param({"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-3}, marks=slow),
    ],
    ids=lambda options: ", ".join(options),
)
def test_a_run_ends_with_the_same_weights(tmp_path, tokenizer, options):
    compared(tmp_path, tokenizer, **options)


@pytest.mark.parametrize("point", [pytest.param("final", marks=slow), ONE])
def test_the_gradient_of_every_loss_is_the_same(tmp_path, tokenizer, point):
    run = trainer(tmp_path, tokenizer, kind=All, reward=odd, gradient_accumulation_steps=4, max_steps=4)
    run.model.train()
    run.current_gradient_accumulation_steps, run.epsilon_high = 4, 0.3
    run._prepare_inputs([{"prompt": prompt} for prompt in PROMPTS[:4] for _ in range(2)])
    run.point = HookPoint.parse(point)
    passes = run._buffered_inputs
    for number, rows in enumerate(passes):
        rows["old_per_token_logps"] = run._score(rows)[0] + 0.3 * torch.randn_like(rows["completion_ids"].float())
        rows["completion_mask"][0, 3 + number % 2 :] = 0
    number = int(sum(spread.matters(rows).sum() for rows in passes))
    assert 0 < number < 7
    levels = CHOICES["importance_sampling_level"] if point == "final" else ["token"]
    for loss, level in product(CHOICES["loss_type"], levels):
        run.loss_type, run.importance_sampling_level = loss, level
        ours, whole = (gradient(run, some) for some in (spread.packed(passes, loss, number), passes))
        largest = max(grad.abs().max().item() for grad in whole.values())
        assert ours.keys() == whole.keys()
        assert all((ours[name] - whole[name]).abs().max() < 1e-5 * largest for name in whole)


def gradient(run: Any, passes: Any) -> dict[str, torch.Tensor]:
    run.model.zero_grad()
    for rows in passes:
        run._compute_loss(run.model, rows).backward()
    return {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("schedule", [pytest.param([f"{ONE}:2"], marks=slow), []], ids=["internal", "whole"])
def test_without_any_advantage_weights_only_decay(tmp_path, tokenizer, schedule):
    found = []
    for kind in (Fixed, All):
        model = tiny_model("qwen3")
        options = {"reward": tenth, "weight_decay": 0.5, "max_steps": 4, "schedule": schedule}
        run = trainer(tmp_path, tokenizer, model, kind=kind, **options)
        run.train()
        found.append(weights(model))
        assert logged(run, "groups_without_spread") == [1.0] * 2
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    before = weights(tiny_model("qwen3"))
    changed = {name for name in before if not torch.equal(before[name], found[0][name])}
    assert "model.layers.0.mlp.up_proj.weight" in changed
    assert ("model.layers.2.mlp.up_proj.weight" in changed) == (not schedule)


def tenth(completions: list[Any], **_: Any) -> list[float]:
    """The same reward always, which float32 doesn't hold exactly."""
    return [0.1] * len(completions)


def test_reinforce_plus_plus_trains_on_prompts_without_spread(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, kind=Fixed, reward=odd, method="reinforce++", max_steps=4)
    run.train()
    assert max(logged(run, "groups_without_spread")) > 0
    assert logged(run, "rows_trained") == [1.0, 1.0]


# passes


def test_passes_are_filled_and_the_rest_have_no_tokens(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, kind=Counted, reward=odd, max_steps=4, gradient_accumulation_steps=4)
    run.train()
    shares = logged(run, "rows_trained")
    assert len(shares) == 4
    for step, share in enumerate(shares):
        passes = run.counts[4 * step : 4 * step + 4]
        number = round(8 * share)
        assert [count for count, tokens in passes if tokens] == [2] * (number // 2)
        assert all(count == 1 for count, tokens in passes if not tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"router_aux_loss_coef": 0.01},
        *(pytest.param({name: 0.1}, marks=slow) for name in ("entropy_coef", "top_entropy_quantile", "beta")),
    ],
    ids=lambda options: next(iter(options)),
)
def test_all_responses_stay_where_another_term_acts_on_them(tmp_path, tokenizer, options):
    tiny_model("mixtral").float().save_pretrained(tmp_path / "model")  # TRL loads the reference from the model's folder
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    options = {"router_aux_loss_coef": 0.0, "schedule": [f"{ONE}:1"], "max_steps": 4, **options}
    run = trainer(tmp_path, tokenizer, model, kind=Fixed, reward=odd, **options)
    run.train()
    internal, whole = logged(run, "rows_trained")
    assert whole == 1
    assert (internal < 1) == ("beta" in options)  # an internal policy has no reference


def test_metrics_are_means_over_the_responses_that_stay(tmp_path, tokenizer):
    clipped = {}
    for kind in (Fixed, All):
        run = trainer(tmp_path, tokenizer, kind=kind, reward=odd, num_iterations=2, max_steps=4, learning_rate=0.05)
        run.train()
        clipped[kind] = logged(run, "clip_ratio/region_mean")[-1]
    assert clipped[Fixed] > clipped[All] > 0


# functions


def batch(advantages: list[float], lengths: list[int]) -> dict[str, Any]:
    rows, longest = len(advantages), max(lengths)
    mask = torch.arange(longest).expand(rows, -1) < torch.tensor(lengths)[:, None]
    return {
        "prompt_ids": torch.arange(3 * rows).view(rows, 3),
        "prompt_mask": torch.ones(rows, 3, dtype=torch.int64),
        "completion_ids": torch.arange(longest * rows).view(rows, longest),
        "completion_mask": mask.long(),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }


def test_packing_keeps_the_weight_of_each_response():
    passes = [batch([0.0, 1.0, 0.0], [4, 2, 4]), batch([0.0, 0.0, 2.0], [4, 4, 3])]
    for loss, expected in {
        "grpo": [1 / 3 * 2, 2 / 3 * 2],  # of 3 responses, now of 2
        "bnpo": [1 / 10 * 5, 2 / 11 * 5],  # of 10 and 11 tokens, now of 5
        "dapo": [1.0, 2.0],
    }.items():
        first, second = spread.packed(passes, loss, 2)
        torch.testing.assert_close(first["advantages"], torch.tensor(expected))
        assert first["completion_ids"].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
        assert second["completion_mask"].tolist() == [[0]]
        assert second["prompt_ids"].shape == (1, 1)
        assert first["num_items_in_batch"] == passes[0]["num_items_in_batch"]


def test_responses_that_only_make_up_the_number_are_masked():
    first, second = spread.packed([batch([0.0, 1.0], [2, 2]), batch([0.0, 0.0], [2, 2])], "grpo", 3)
    assert [len(rows["advantages"]) for rows in (first, second)] == [2, 1]
    assert first["completion_mask"].tolist() == [[0, 0], [1, 1]]
    assert second["completion_mask"].tolist() == [[0, 0]]
    assert first["advantages"].tolist() == [0.0, 1.0]


def test_a_masked_response_does_not_matter():
    assert spread.matters(batch([1.0, 1.0, 0.0], [0, 1, 1])).tolist() == [False, True, False]


def test_groups_without_spread_have_one_reward_of_each_function():
    nan = math.nan
    rewards = torch.tensor([[0.1, 1], [0.1, 1], [0.1, 1], [0.1, 0], [nan, 1], [nan, 1], [nan, 1], [1, nan]])
    assert spread.without_spread(rewards, 2).tolist() == [True, False, True, False]
