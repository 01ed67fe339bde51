"""GRPO's gradient at each hook point is the trainer's own, and the share of the whole policy's is measured from it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import moved, random_rollout, tiny_model
from torch import Tensor
from trainer import Fixed, by_length, trainer
from transformers import TrainerCallback

from internal_policy.cli import progress
from internal_policy.errors import InputError
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import policy_logits
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train import align as module
from internal_policy.train import target
from internal_policy.train.align import align, cost, weighted
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.gradients import Weighted, gradients
from internal_policy.train.run import Setup

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


class Seen(Fixed):
    """A trainer that keeps its first batch."""

    batch: Any = None

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.batch = self.batch or batch
        return batch


class FirstGradient(TrainerCallback):
    """Keeps the gradient of the first update."""

    def __init__(self):
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model: Any = None, **_):
        if not self.found:
            known = model.named_parameters()
            self.found = {name: weight.grad.clone() for name, weight in known if weight.grad is not None}


def of_batch(batch: dict[str, Any], tokenizer: Any) -> list[Rollout]:
    """The responses of a trainer's batch, marked as it marks them."""
    rollouts = []
    for row in range(len(batch["prompt_ids"])):
        prompt, response = (
            tuple(batch[f"{part}_ids"][row][batch[f"{part}_mask"][row].bool()].tolist())
            for part in ("prompt", "completion")
        )
        text = tokenizer.decode(response, skip_special_tokens=True)
        rollouts.append(Rollout("", "", 0, prompt, response, text, by_length([text])[0], True))
    return rollouts


@pytest.mark.parametrize(("schedule", "readout"), [([], "raw"), (["1.resid_post:1"], "norm"), (["0.mlp_out:1"], "raw")])
def test_the_gradient_is_that_of_the_trainers_first_update(tmp_path, tokenizer, schedule, readout):
    first = FirstGradient()
    more = {"gradient_accumulation_steps": 4, "num_generations": 4, "max_grad_norm": 0.0, "temperature": 0.7}
    model = moved(tiny_model("qwen3"))
    one = trainer(
        tmp_path,
        tokenizer,
        model,
        Seen,
        schedule=schedule,
        readout=readout,
        max_steps=1,
        learning_rate=1e-12,
        callbacks=[first],
        **more,
    )
    one.train()
    groups: dict[tuple[int, ...], list[Rollout]] = {}
    for rollout in of_batch(one.batch, tokenizer):
        groups.setdefault(rollout.prompt_ids, []).append(rollout)
    batch = [each for group in groups.values() for each in weighted(group)]
    assert len(batch) == 8
    point = HookPoint.parse(schedule[0].partition(":")[0]) if schedule else FINAL
    (found,) = gradients(model, batch, [(point, readout)], temperature=0.7)
    assert found.keys() >= {name for name, grad in first.found.items() if grad.any()}
    for name, grad in found.items():
        expected = -8 * first.found.get(name, torch.zeros_like(grad))
        close = 1e-5 * float(expected.abs().max())  # TRL's rewards are in float32
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=max(close, 1e-9))


def objective(model: Any, batch: list[Weighted], point: HookPoint, readout: Any) -> Tensor:
    """The objective, one response and token at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for one in batch:
        ids, start = one.rollout.ids, len(one.rollout.prompt_ids)
        logprobs = policy_logits(model, point, readout, input_ids=torch.tensor([ids])).log_softmax(-1)[0]
        mean = sum(logprobs[t - 1, ids[t]] for t in range(start, len(ids))) / (len(ids) - start)
        total = total + one.advantage * mean
    return total


def a_batch() -> list[Weighted]:
    """Responses of different lengths with advantages."""
    return [Weighted(random_rollout(3 + n, 4 + 2 * n, seed=n), value) for n, value in enumerate((1.5, -0.5, -1.0))]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_the_gradient_is_that_of_each_response_alone(family):
    model = moved(tiny_model(family))
    points: list[Any] = [(HookPoint(1, "attn_out"), "norm"), (HookPoint(0, "resid_post"), "raw"), (FINAL, "raw")]
    for (point, readout), gradient in zip(points, gradients(model, a_batch(), points), strict=True):
        model.zero_grad()
        objective(model, a_batch(), point, readout).backward()
        for name, weight in model.named_parameters():
            expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
            torch.testing.assert_close(
                gradient.get(name, torch.zeros_like(weight)), expected, rtol=1e-5, atol=1e-6
            )  # norms are in float32


def test_the_gradient_is_the_slope_of_the_objective():
    model, points = moved(tiny_model("gpt2")), list[Any]([(HookPoint(1, "mlp_out"), "norm"), (FINAL, "raw")])
    found = gradients(model, a_batch(), points)
    known, generator = dict(model.named_parameters()), torch.Generator().manual_seed(1)
    way = {name: torch.randn(one.shape, generator=generator, dtype=torch.float64) for name, one in known.items()}
    for (point, readout), gradient in zip(points, found, strict=True):
        values = []
        for step in (1e-6, -2e-6, 1e-6):
            with torch.no_grad():
                for name, one in known.items():
                    one += step * way[name]
                values.append(float(objective(model, a_batch(), point, readout)))
        slope = sum(float((gradient[name] * way[name]).sum()) for name in gradient)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


def test_a_pass_that_ends_at_the_highest_point_gives_the_same_gradients(monkeypatch):
    model = moved(tiny_model("qwen3"))
    points: list[Any] = [(HookPoint(0, "mlp_out"), "norm"), (HookPoint(1, "resid_post"), "norm")]
    whole = gradients(model, a_batch(), [*points, (FINAL, "raw")])[:2]
    monkeypatch.setattr("internal_policy.train.gradients.LOGITS", 1)  # a token at a time
    alone = gradients(model, a_batch(), points)
    for one, other in zip(whole, alone, strict=True):
        assert one.keys() == other.keys()
        for name, grad in one.items():
            torch.testing.assert_close(grad, other[name])
    assert not any("layers.2" in name for name in alone[1])


def rollouts(prompts: int = 8, group: int = 3) -> list[Rollout]:
    """Random responses to random prompts; those to every second prompt all have the same reward."""
    found = []
    for prompt in range(prompts):
        ids = random_rollout(4, 1, seed=prompt).prompt_ids
        for sample in range(group):
            reward = float(sample == prompt % group) if prompt % 2 == 0 else 1.0
            response = random_rollout(4, 5 + sample, seed=100 + group * prompt + sample)
            found.append(replace(response, prompt_ids=ids, sample=sample, reward=reward))
    return found


def test_the_last_layer_through_the_norm_is_the_whole_policy_and_has_all_of_its_gain():
    model = moved(tiny_model("qwen3"))
    found = align(model, rollouts())
    table = found.table
    last = model.config.num_hidden_layers - 1
    whole = table[(table["layer"] == last) & (table["readout"] == "norm")]
    assert sorted(whole["measure"]) == ["cosine", "cosine_in_batch", "gain", "gain_in_batch"]
    assert whole[["mean", "low", "high"]].to_numpy() == pytest.approx(1)
    lower = table[(table["layer"] < last) & (table["measure"] == "gain_in_batch")]
    assert lower["mean"].between(-1, 0.999).all()
    assert {name: found.about[name] for name in ("prompts", "with_spread", "responses", "blocks")} == {
        "prompts": 8,
        "with_spread": 4,
        "responses": 24,
        "blocks": 4,
    }


def test_prompts_without_spread_and_the_size_of_passes_change_nothing(monkeypatch):
    model, given = moved(tiny_model("qwen3")), rollouts()
    chosen: Any = {"layers": [0, 1], "sites": ["resid_post", "mlp_out"], "readouts": ["norm"]}
    whole = align(model, given, **chosen).table.query("measure.str.endswith('in_batch')")
    with_spread = [one for number, one in enumerate(given) if number // 3 % 2 == 0]
    monkeypatch.setattr(module, "_fitting", lambda _, blocks: (blocks, 2))  # two hook points at a time
    found = align(model, with_spread, **chosen, batch_size=2)
    again = found.table.query("measure.str.endswith('in_batch')")
    columns = ["cost", "mean", "low", "high"]
    assert again[columns].to_numpy() == pytest.approx(whole[columns].to_numpy(), abs=0.01)  # signs of rounding errors
    assert (found.about["prompts"], found.about["with_spread"]) == (4, 4)


def test_only_trained_parameters_count():
    model = moved(tiny_model("qwen3"))
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.0" in name)
    (low, high, head) = gradients(
        model, a_batch(), [(HookPoint(0, "resid_post"), "raw"), (HookPoint(1, "resid_post"), "raw"), (FINAL, "raw")]
    )
    assert low.keys() == high.keys() == head.keys()
    assert all("layers.0" in name for name in low)
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.1" in name)
    assert gradients(model, a_batch(), [(HookPoint(0, "resid_post"), "raw")]) == [{}]
    found = align(model, rollouts(), layers=[0], readouts=["raw"])
    assert found.table["mean"].tolist() == [0, 0, 0, 0]


def test_adapters_alone_have_a_gradient():
    from peft import LoraConfig, get_peft_model

    model = moved(get_peft_model(tiny_model("qwen3"), LoraConfig(target_modules=["q_proj"])))
    (found,) = gradients(model, a_batch(), [(HookPoint(1, "resid_post"), "raw")])
    assert len(found) == 4
    assert all("lora_" in name for name in found)


def test_cost_counts_the_layers_below_and_the_head():
    model = tiny_model("qwen3")
    last = model.config.num_hidden_layers - 1
    assert cost(model, HookPoint(last, "resid_post")) == 1
    costs = [cost(model, HookPoint(layer, "resid_post")) for layer in range(last)]
    assert costs == sorted(costs)
    assert costs[0] > 0.25  # sampling costs a quarter


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (rollouts(prompts=6), {}, "Prompts whose responses have different rewards: 3 of 6. At least 4 are needed."),
        ([random_rollout()], {}, "Rollout 0 has no reward"),
        (rollouts(), {"sites": ["attn_in"]}, "no site 'attn_in'"),
        (rollouts(), {"layers": [9]}, "no layer 9"),
        (rollouts(), {"readouts": ["tuned"]}, "no readout 'tuned'"),
    ],
)
def test_what_cannot_be_measured_is_refused(given, options, message):
    with pytest.raises(InputError, match=message):
        align(tiny_model("qwen3"), given, **options)


def test_gradients_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**5}))
    with pytest.raises(InputError, match="only half of"):
        align(tiny_model("qwen3"), rollouts())


def test_the_target_layer_is_chosen_once_and_kept(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("internal_policy.train.run.generate", lambda *_, **__: [rollouts()])
    setup: Any = Setup(tmp_path, moved(tiny_model("qwen3")), tokenizer, [], {}, [], {})
    config = BuPOConfig(output_dir=str(tmp_path), readout="norm", use_cpu=True)
    first = target.aligned(setup, config, "resid_post", progress.bar)
    assert first["target"] in (0, 1, None)
    assert "norm: " in first["reason"]
    monkeypatch.setattr("internal_policy.train.run.generate", None)
    assert target.aligned(setup, config, "resid_post", progress.bar) == first
    assert (tmp_path / target.TARGET).exists()


def test_rewards_of_another_kind_are_refused(tmp_path, tokenizer):
    config = BuPOConfig(output_dir=str(tmp_path), rewards=["format"], use_cpu=True)
    setup: Any = Setup(tmp_path, moved(tiny_model("qwen3")), tokenizer, [], {}, [], {})
    with pytest.raises(InputError, match="marks responses by their boxes"):
        target.aligned(setup, config, "resid_post", progress.bar)
