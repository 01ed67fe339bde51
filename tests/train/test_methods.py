"""Training methods set the advantages and the loss; TRL's own trainers are the references."""

import math
from typing import Any

import pytest
import torch
from conftest import tiny_model
from trainer import PROMPTS, Fixed, by_length, trainer, weights
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from internal_policy.errors import InputError
from internal_policy.look import run_summary
from internal_policy.train import defaults, finite, methods
from internal_policy.train.configuration import BuPOConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
NAN = math.nan


def test_every_method_has_a_title():
    assert list(run_summary.METHODS) == ["bupo", "grpo", "dr-grpo", "rloo", "reinforce++"]
    assert {*run_summary.METHODS} == {*methods.METHODS}


def test_rloo_compares_a_response_with_the_others_of_its_group():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, NAN])
    advantages = methods.leave_one_out(rewards, torch.ones(6), 3)
    assert advantages.tolist() == [1.0, -0.5, -0.5, 0.0, 0.0, 0.0]


def test_reinforce_plus_plus_standardizes_rewards_over_the_tokens_of_the_batch():
    rewards, lengths = torch.tensor([1.0, 0.0, 0.0, NAN]), torch.tensor([2.0, 1.0, 1.0, 9.0])
    advantages = methods.standardized(rewards, lengths, 2)  # mean 2/4, variance (2 + 1 + 1) / 4 / 4
    torch.testing.assert_close(advantages, torch.tensor([1.0, -1.0, -1.0, 0.0]), atol=1e-3, rtol=0)
    assert methods.standardized(torch.full((4,), 0.3), torch.tensor([3.0, 5.0, 2.0, 7.0]), 2).tolist() == [0.0] * 4


def test_the_sum_of_log_ratios_of_a_response_is_bounded():
    old, mask = torch.zeros(2, 3), torch.tensor([[1, 1, 1], [1, 1, 0]])
    logps = torch.tensor([[15.0, 15.0, 10.0], [5.0, 5.0, 99.0]], requires_grad=True)
    bounded = finite.bounded_responses(logps, old, mask)
    assert (bounded * mask).sum(1).tolist() == pytest.approx([20.0, 10.0])
    (bounded * mask).sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("method", "kind", "config", "fields"),
    [
        ("rloo", RLOOTrainer, RLOOConfig, {"beta": 0.0}),
        ("dr-grpo", GRPOTrainer, GRPOConfig, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    ],
)
@pytest.mark.parametrize("accumulation", [2, pytest.param(4, marks=pytest.mark.slow)])  # two updates a batch, or one
def test_a_method_trains_as_trls_own_trainer_does(tmp_path, tokenizer, method, kind, config, fields, accumulation):
    ours = trainer(tmp_path / "ours", tokenizer, method=method, gradient_accumulation_steps=accumulation, max_steps=4)
    ours.train()
    model = tiny_model("qwen3")
    settings = config(
        output_dir=str(tmp_path / "theirs"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        disable_tqdm=True, save_strategy="no", lr_scheduler_type="constant", per_device_train_batch_size=2,
        steps_per_generation=4, num_generations=2, max_completion_length=6, learning_rate=1e-2, max_steps=4,
        gradient_accumulation_steps=accumulation, **fields,
    )  # fmt: skip
    theirs = kind(model, by_length, settings, train_dataset=ours.train_dataset, processing_class=tokenizer)
    sampler = ours._get_train_sampler
    theirs._get_train_sampler = lambda dataset=None: sampler(dataset)  # the same order
    theirs.train()
    for mine, its in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-7, rtol=0)


def test_reinforce_plus_plus_has_no_baseline_of_the_group(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, kind=Fixed, method="reinforce++")
    run.model.train()
    batch = run._generate_and_score_completions([{"prompt": PROMPTS[n // 2]} for n in range(8)])
    lengths = batch["completion_mask"].sum(1).float()
    advantages = batch["advantages"]
    assert float((advantages * lengths).sum()) == pytest.approx(0, abs=1e-4)
    assert advantages.view(-1, 2).sum(1).abs().max() > 0.1
    order = run.rewards.argsort()
    assert (advantages[order].diff() >= 0).all()


@pytest.mark.parametrize("method", list(methods.METHODS))
def test_every_method_trains_for_five_steps(tmp_path, tokenizer, method):
    run = trainer(tmp_path, tokenizer, kind=Fixed, method=method, schedule=["1.resid_post:2"], max_steps=5,
                  gradient_accumulation_steps=4)  # fmt: skip
    run.train()
    logged = [row for row in run.state.log_history if "reward" in row]
    assert ["internal/entropy" in row for row in logged] == [True, True, False, False, False]
    assert any(row["grad_norm"] > 0 for row in logged)


@pytest.mark.parametrize("method", ["rloo", *(pytest.param(name, marks=pytest.mark.slow) for name in methods.METHODS)])
def test_every_method_resumes(tmp_path, tokenizer, method):
    options = {"kind": Fixed, "method": method, "schedule": ["1.resid_post:1"], "max_steps": 6}
    whole = trainer(tmp_path, tokenizer, **options, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer(tmp_path, tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    after = weights(resumed.model)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(whole.model).items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "ppo"}, "There is no method ppo: PPO trains a value model too, and TRL 1.16 no longer has"),
        ({"method": "pong"}, "There is no method 'pong'. Choose one of bupo, grpo, dr-grpo, rloo, reinforce++."),
        ({"method": "rloo", "beta": 0.1}, "method rloo doesn't use beta, which is 0.1. Remove it."),
        ({"method": "reinforce++", "scale_rewards": "batch"}, "method reinforce\\+\\+ doesn't use scale_rewards"),
    ],
)
def test_a_method_that_cannot_be_used_is_refused_in_a_sentence(fields, said):
    with pytest.raises(InputError, match=said):
        BuPOConfig(output_dir="unused", use_cpu=True, report_to=[], **fields)


def test_a_method_sets_its_fields_and_takes_them_as_given_too():
    plain: dict[str, Any] = {"output_dir": "unused", "use_cpu": True, "report_to": [], "method": "dr-grpo"}
    given: list[dict[str, Any]] = [{}, {"loss_type": "dr_grpo", "scale_rewards": "none"}, {"scale_rewards": False}]
    for more in given:
        config = BuPOConfig(**plain, **more)
        assert (config.loss_type, config.scale_rewards) == ("dr_grpo", "none")


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, method in methods.METHODS.items() for field in method.fields]
)
def test_a_field_that_contradicts_the_method_is_refused(tmp_path, name, field):
    for value in {"loss_type": ("bnpo", "grpo"), "scale_rewards": ("batch", "group", True)}[field]:
        with pytest.raises(InputError) as refused:
            defaults.configured(tmp_path, {"method": name, "use_cpu": True, field: value}, {}, file="my.yaml")
        given = "group" if value is True else value
        said = f"method {name} sets {field} to {methods.METHODS[name].fields[field]}, not {given}. Remove {field}"
        assert said in str(refused.value)


def test_bupo_without_a_schedule_is_called_grpo():
    plain = BuPOConfig(output_dir="unused", use_cpu=True, report_to=[])
    scheduled = BuPOConfig(output_dir="unused", use_cpu=True, report_to=[], schedule=["1.resid_post:2"])
    assert (methods.called(plain), methods.called(scheduled)) == ("grpo", "bupo")
