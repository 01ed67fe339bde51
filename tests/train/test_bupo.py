"""BuPO is GRPO with the ratio of the policy at the scheduled hook point."""

import copy
import math
import os
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import hook_count, tiny_model
from tokenizers.processors import TemplateProcessing
from trainer import PROMPTS, Fixed, by_length, odd, trainer, weights
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from internal_policy.errors import InputError
from internal_policy.models.hooks import HookPoint
from internal_policy.models.policy import policy_logits
from internal_policy.tasks.generate import end_ids
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import encode_problem
from internal_policy.train import checkpoints
from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.dataset import dataset_of
from internal_policy.train.sampler import EpochSampler

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
ONE = "1.resid_post"
OVERRIDES = re.compile(r"Overrides private names:.*?It also", re.DOTALL)


class Record(TrainerCallback):
    """What was logged, and the weights after each update."""

    def __init__(self):
        self.logs, self.weights = [], []

    def on_train_begin(self, args, state, control, model=None, **_):
        self.weights.append(weights(model))

    def on_step_end(self, args, state, control, model=None, **_):
        self.weights.append(weights(model))

    def on_log(self, args, state, control, logs: Any = None, **_):
        if "learning_rate" in logs:
            self.logs.append(dict(logs))

    def changed(self, update: int) -> set[str]:
        """Names of the parameters that an update, counted from 0, has changed."""
        before, after = self.weights[update : update + 2]
        return {name for name in before if not torch.equal(before[name], after[name])}


class Ratios(BuPOTrainer):
    """Records the ratio of each pass with the trained hook point."""

    def _generate_and_score_completions(self, inputs):
        seen.append([])
        return super()._generate_and_score_completions(inputs)

    def _compute_loss(self, model, inputs):
        with torch.no_grad():
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            keep = inputs["completion_ids"].shape[1]
            now = self._get_per_token_logps_and_entropies(model, ids, mask, keep)[0]
            old = inputs.get("old_per_token_logps", now)
            ratio = ((now - old).exp())[inputs["completion_mask"].bool()]
        seen[-1].append((str(self.point), self.state.global_step, ratio))
        return super()._compute_loss(model, inputs)


seen: list = []


def layers_of(names) -> set[int]:
    return {int(found.group(1)) for name in names if (found := re.search(r"layers\.(\d+)", name))}


# the base class


def test_the_docstring_lists_every_overridden_private_name():
    ours = [kind for kind in BuPOTrainer.__mro__ if kind.__module__.startswith("internal_policy.")]
    private = {name for kind in ours for name in vars(kind) if name.startswith("_") and not name.endswith("__")}
    overridden = {name for name in private if hasattr(GRPOTrainer, name)}
    (listed,) = OVERRIDES.findall(BuPOTrainer.__doc__ or "")
    assert overridden - {"_abc_impl"} == set(re.findall(r"`(_\w+)`", listed))


# loss and ratio


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "granite", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("point", ["0.resid_post", "1.resid_post", "1.attn_out", "2.mlp_out", "2.resid_post"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_match_the_hidden_state_times_the_unembedding(
    tmp_path, tokenizer, family, point, temperature
):
    model = tiny_model(family)
    run = trainer(tmp_path, tokenizer, model, schedule=[f"{point}:2"], temperature=temperature)
    run.point = HookPoint.parse(point)
    ids = torch.randint(5, 256, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    model.train()
    logps, entropies, _ = run._get_per_token_logps_and_entropies(model, ids, mask, 5, compute_entropy=True)
    logits = policy_logits(model, run.point, input_ids=ids, attention_mask=mask)[:, -6:-1] / temperature
    expected = logits.log_softmax(-1)
    own = expected.gather(-1, ids[:, -5:, None]).squeeze(-1)
    assert logps.dtype == entropies.dtype
    torch.testing.assert_close(logps.double(), own, atol=3e-5, rtol=0)
    torch.testing.assert_close(entropies.double(), -(expected.exp() * expected).sum(-1), atol=3e-5, rtol=0)


def test_the_norm_readout_goes_through_the_final_norm(tmp_path, tokenizer):
    model = tiny_model("llama")
    run = trainer(tmp_path, tokenizer, model, schedule=["1.resid_post:2"], readout="norm")
    run.point = HookPoint(1, "resid_post")
    ids = torch.randint(5, 256, (2, 9))
    model.train()
    logps = run._get_per_token_logps_and_entropies(model, ids, torch.ones_like(ids), 4)[0]
    expected = policy_logits(model, run.point, "norm", input_ids=ids)[:, -5:-1].log_softmax(-1)
    own = expected.gather(-1, ids[:, -4:, None]).squeeze(-1)
    torch.testing.assert_close(logps.double(), own, atol=3e-5, rtol=0)


def test_each_phase_has_its_own_readout(tmp_path, tokenizer):
    model = tiny_model("llama", tie_word_embeddings=False)
    record = Record()
    schedule = ["final:1", "1.resid_post@norm:1", "1.resid_post@raw:1", "0.mlp_out:1", "final"]
    run = trainer(tmp_path, tokenizer, model, schedule=schedule, readout="norm", max_steps=10, callbacks=[record])
    run.train()
    norm = ["model.norm.weight" in record.changed(update) for update in range(0, 10, 2)]
    assert norm == [True, True, False, True, True]
    assert [max(layers_of(record.changed(update))) for update in range(0, 10, 2)] == [2, 1, 1, 0, 2]


def test_evaluation_scores_with_the_whole_policy(tmp_path, tokenizer):
    model = tiny_model("llama")
    run = trainer(tmp_path, tokenizer, model, schedule=["1.resid_post:2"])
    run.point = HookPoint(1, "resid_post")
    ids = torch.randint(5, 256, (2, 9))
    model.eval()
    logps = run._get_per_token_logps_and_entropies(model, ids, torch.ones_like(ids), 4)[0]
    own = model(ids).logits[:, -5:-1].log_softmax(-1).gather(-1, ids[:, -4:, None]).squeeze(-1)
    torch.testing.assert_close(logps.double(), own.detach(), atol=3e-5, rtol=0)


def test_evaluating_within_a_step_keeps_its_phase(tmp_path, tokenizer):
    record = Record()
    problem = Problem((Message(role="user", content="What is 2 + 2?"),), "4")
    run = trainer(
        tmp_path, tokenizer, kind=Fixed, schedule=[f"{ONE}:2"], callbacks=[record],
        eval_dataset=dataset_of([problem] * 2, None), eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=2,
    )  # fmt: skip
    run.train()
    assert sum("eval_reward" in row for row in run.state.log_history) == 8
    assert not any("eval_internal" in name for row in run.state.log_history for name in row)
    assert [layers_of(record.changed(update)) for update in range(4)] == [{0, 1}] * 4


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("iterations", [1, 2])
def test_the_ratio_is_1_only_at_the_first_update_after_each_generation(tmp_path, tokenizer, accumulation, iterations):
    seen.clear()
    updates = 4 * iterations // accumulation
    options = {"gradient_accumulation_steps": accumulation, "num_iterations": iterations, "max_steps": 4 * updates}
    run = trainer(tmp_path, tokenizer, kind=Ratios, schedule=[f"{ONE}:2"], **options)
    run.train()
    assert [batch[0][0] for batch in seen] == [ONE, ONE, "final", "final"]
    for number, batch in enumerate(seen):
        first = [ratio for _, update, ratio in batch if update == number * updates]
        later = [ratio for _, update, ratio in batch if update > number * updates and len(ratio)]
        torch.testing.assert_close(torch.cat(first), torch.ones_like(torch.cat(first)), atol=1e-6, rtol=0)
        assert all((ratio - 1).abs().max() > 1e-4 for ratio in later)
        assert len({update for _, update, _ in batch}) == updates
        assert len({point for point, _, _ in batch}) == 1


def test_the_loss_matches_grpo_worked_by_hand(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, epsilon=0.2)
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10]])
    with torch.no_grad():
        now = run._get_per_token_logps_and_entropies(run.model, ids, torch.ones_like(ids), 2)[0]
    ratio = torch.tensor([[1.5, 1.1], [0.5, 1.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    # rewards 1 and 0: mean 0.5, standard deviation sqrt(0.5), so A = +-0.5 / (0.7071 + 1e-4)
    advantage = 0.5 / (math.sqrt(0.5) + 1e-4)
    batch = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": torch.ones(2, 2, dtype=torch.int64),
        "completion_ids": ids[:, 2:],
        "completion_mask": mask,
        "advantages": torch.tensor([advantage, -advantage]),
        "old_per_token_logps": now - ratio.log(),
        "num_items_in_batch": torch.tensor(3),
    }
    loss = run._compute_loss(run.model, batch)
    # first response: min(1.5 A, 1.2 A) = 1.2 A and 1.1 A, mean 1.15 A
    # second: of -0.5 A and -0.8 A, the larger loss is that of -0.8 A; its other token is masked
    expected = -(1.15 * advantage - 0.8 * advantage) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert run._metrics["train"]["clip_ratio/region_mean"][-1] == pytest.approx(2 / 3)


def test_advantages_compare_the_responses_to_one_prompt(tmp_path, tokenizer):
    batches = []

    class Kept(Fixed):
        def _generate_and_score_completions(self, inputs):
            batches.append(super()._generate_and_score_completions(inputs))
            return batches[-1]

    run = trainer(tmp_path, tokenizer, kind=Kept, max_steps=2)
    run.train()
    advantages = batches[0]["advantages"].view(-1, 2)
    rewards = torch.tensor(list(run._logs["rewards"]["by_length"])).view(-1, 2)[:4]
    spread = rewards.std(1, keepdim=True)  # Eq. 3: (R - mean) / standard deviation
    torch.testing.assert_close(advantages, ((rewards - rewards.mean(1, keepdim=True)) / (spread + 1e-4)).float())


# what training changes


@pytest.mark.parametrize("tied", [True, False])
def test_phase_one_changes_only_embeddings_and_layers_up_to_the_hook_point(tmp_path, tokenizer, tied):
    record = Record()
    model = tiny_model("llama", tie_word_embeddings=tied)
    trainer(tmp_path, tokenizer, model, schedule=["1.resid_post:2"], max_steps=8, callbacks=[record]).train()
    everything = set(weights(model))
    head = set() if tied else {"lm_head.weight"}
    for update in range(4):  # 2 steps of 2 updates
        changed = record.changed(update)
        assert layers_of(changed) == {0, 1}
        assert changed - {name for name in changed if "layers" in name} == {"model.embed_tokens.weight"} | head
    assert set().union(*(record.changed(update) for update in range(4, 8))) == everything


@pytest.mark.parametrize(("point", "outside"), [("1.attn_out", "layers.1.mlp"), ("1.mlp_out", "layers.2")])
def test_a_modular_policy_trains_only_its_own_parts(tmp_path, tokenizer, point, outside):
    record = Record()
    trainer(tmp_path, tokenizer, schedule=[f"{point}:4"], callbacks=[record]).train()
    changed = set().union(*(record.changed(update) for update in range(8)))
    site = {"attn_out": "self_attn", "mlp_out": "mlp"}[point.partition(".")[2]]
    assert any(f"layers.1.{site}" in name for name in changed)
    assert not any(outside in name for name in changed)
    assert layers_of(changed) == {0, 1}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("iterations", [1, 2])
def test_the_number_of_updates_does_not_change_the_length_of_phase_one(tmp_path, tokenizer, accumulation, iterations):
    record = Record()
    updates = 4 * iterations // accumulation
    trainer(
        tmp_path, tokenizer, schedule=["0.resid_post:3"], num_iterations=iterations,
        gradient_accumulation_steps=accumulation, max_steps=4 * updates, callbacks=[record],
    ).train()  # fmt: skip
    internal = [layers_of(record.changed(update)) <= {0} for update in range(4 * updates)]
    assert internal == [True] * 3 * updates + [False] * updates


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("reward", [by_length, odd])
def test_without_a_schedule_training_equals_trls_grpo(tmp_path, tokenizer, accumulation, reward):
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 4, "reward": reward, "optim": "sgd"}
    ours = trainer(tmp_path / "ours", tokenizer, **options)
    ours.train()
    plain = {name: value for name, value in vars(ours.args).items() if name in GRPOConfig.__dataclass_fields__}
    config = GRPOConfig(
        output_dir=str(tmp_path / "theirs"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        disable_tqdm=True, save_strategy="no",
        **{name: plain[name] for name in ("per_device_train_batch_size", "steps_per_generation", "num_generations",
        "max_completion_length", "learning_rate", "max_steps", "gradient_accumulation_steps", "loss_type", "optim",
        "lr_scheduler_type")},
    )  # fmt: skip
    model = tiny_model("qwen3")
    theirs = GRPOTrainer(model, ours.reward_funcs, config, train_dataset=ours.train_dataset, processing_class=tokenizer)
    sampler = ours._get_train_sampler
    theirs._get_train_sampler = lambda dataset=None: sampler(dataset)  # the same order
    theirs.train()
    left_out = any(row["rows_trained"] < 1 for row in ours.state.log_history if "rows_trained" in row)
    assert left_out == (reward is odd)
    for a, b in zip(ours.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7, rtol=0) if left_out else torch.equal(a, b)


@pytest.mark.parametrize("point", ["1.resid_post", "1.attn_out", "0.mlp_out"])
def test_gradient_checkpointing_changes_nothing(tmp_path, tokenizer, point):
    models = [tiny_model("qwen3") for _ in range(2)]
    for model, on in zip(models, (False, True), strict=True):
        trainer(
            tmp_path / str(on), tokenizer, model, kind=Fixed, schedule=[f"{point}:2"], gradient_checkpointing=on
        ).train()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [True, False], ids=["each layer compiled", "compiled whole"])
def test_compiling_the_model_does_not_change_training(tmp_path, tokenizer, layers):
    runs = []
    for number, compile_it in enumerate((False, True)):
        torch.manual_seed(0)
        model = tiny_model("llama").float()
        if compile_it and layers:
            for layer in model.model.layers:
                layer.compile(backend="eager")
        options = {"torch_compile": True, "torch_compile_backend": "eager"} if compile_it and not layers else {}
        run = trainer(tmp_path / str(number), tokenizer, model, schedule=[f"{ONE}:1", "0.attn_out:1"], **options)
        run.train()
        runs.append(weights(model))
    for name, weight in runs[0].items():
        torch.testing.assert_close(runs[1][name], weight, atol=1e-4, rtol=1e-3)


def test_lora_trains_the_adapters_up_to_the_hook_point(tmp_path, tokenizer):
    from peft import LoraConfig

    record = Record()
    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    run = trainer(tmp_path, tokenizer, schedule=[f"{ONE}:2"], peft_config=lora, callbacks=[record])
    run.train()
    for update in range(4):
        changed = record.changed(update)
        assert layers_of(changed) == {0, 1}
        assert all("lora_" in name for name in changed)
    later = set().union(*(record.changed(update) for update in range(4, 8)))
    assert layers_of(later) == {0, 1, 2}


def test_a_padding_token_outside_the_vocabulary_does_not_change_training(tmp_path, tokenizer):
    padded = copy.deepcopy(tokenizer)
    padded.add_tokens([f"<|{n}|>" for n in range(len(tokenizer), 320)])
    padded.add_special_tokens({"pad_token": "[PAD]"})  # without resizing the model
    models = [tiny_model("qwen3"), tiny_model("qwen3")]
    for model, its in zip(models, (tokenizer, padded), strict=True):
        trainer(tmp_path, its, model, kind=Fixed, schedule=[f"{ONE}:2"], max_steps=4).train()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b)


# logs


def test_logs_of_the_internal_policy_are_named_internal(tmp_path, tokenizer):
    record = Record()
    trainer(tmp_path, tokenizer, schedule=[f"{ONE}:2"], callbacks=[record], logging_steps=2).train()
    internal, whole = record.logs[0], record.logs[-1]
    assert internal["internal/entropy"] != internal["entropy"]
    assert "internal/clip_ratio/region_mean" in internal
    assert "clip_ratio/region_mean" not in internal
    assert not any(name.startswith("internal/") for name in whole)


def test_a_kl_term_only_acts_while_the_whole_policy_is_trained(tmp_path, tokenizer):
    found = {}
    tiny_model("qwen3").float().save_pretrained(tmp_path / "model")  # TRL loads the reference from the model's folder
    for beta in (0.0, 0.5):
        record, model = Record(), AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        trainer(tmp_path, tokenizer, model, kind=Fixed, schedule=[f"{ONE}:2"], beta=beta, callbacks=[record]).train()
        found[beta] = record
    assert ["kl" in log for log in found[0.5].logs] == [False] * 4 + [True] * 4
    for update in range(4):  # 2 steps of 2 updates
        one, other = (record.weights[update + 1] for record in found.values())
        assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (record.weights[-1] for record in found.values())
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_the_whole_policys_entropy_is_logged_in_phase_one(tmp_path, tokenizer):
    batches, record = [], Record()

    class Kept(Fixed):
        def _generate_and_score_completions(self, inputs):
            batches.append(super()._generate_and_score_completions(inputs))
            return batches[-1]

    model = tiny_model("qwen3")
    before = tiny_model("qwen3")
    trainer(
        tmp_path, tokenizer, model, kind=Kept, schedule=[f"{ONE}:1"], max_steps=2, logging_steps=2, callbacks=[record]
    ).train()
    batch = batches[0]
    ids, mask = (torch.cat([batch[f"prompt_{k}"], batch[f"completion_{k}"]], 1)[::2] for k in ("ids", "mask"))
    keep = batch["completion_ids"].shape[1]
    with torch.no_grad():
        policy = before(ids, attention_mask=mask).logits[:, -keep - 1 : -1].log_softmax(-1)
    entropy = -(policy.exp() * policy).sum(-1)[batch["completion_mask"][::2].bool()].mean()
    assert record.logs[0]["entropy"] == pytest.approx(entropy.item(), abs=1e-5)


@pytest.mark.parametrize("schedule", [[f"{ONE}:1"], []], ids=["internal", "whole"])
def test_no_means_over_tokens_are_logged_if_every_response_is_masked(tmp_path, tokenizer, schedule):
    class Cut(Fixed):
        def _generate_single_turn(self, prompt_ids, *_, **__):
            return [[5, 6, 7, 8, 9, 10] for _ in prompt_ids], None

    record = Record()
    options = {"mask_truncated_completions": True, "max_steps": 2, "logging_steps": 2}
    trainer(tmp_path, tokenizer, kind=Cut, schedule=schedule, callbacks=[record], **options).train()
    assert record.logs[0]["completions/clipped_ratio"] == 1
    assert not [name for name in record.logs[0] if "entropy" in name or "clip_ratio" in name.replace("clipped", "")]


def test_passes_without_tokens_do_not_lower_the_mean_entropy(tmp_path, tokenizer):
    class Half(Fixed):
        def _generate_single_turn(self, prompt_ids, *_, **__):
            made = [[5 + number, 6, 7, 8, 9, 10 if number < 4 else end] for number, _ in enumerate(prompt_ids)]
            return made, None

    end, logs = tokenizer.eos_token_id, {}
    for masked in (False, True):
        record = Record()
        options = {"mask_truncated_completions": masked, "max_steps": 2, "logging_steps": 2, "learning_rate": 0.0}
        trainer(tmp_path, tokenizer, kind=Half, callbacks=[record], shuffle_dataset=False, **options).train()
        logs[masked] = record.logs[0]["entropy"]
    assert logs[True] > 0.8 * logs[False]


def test_no_telemetry_is_sent(tmp_path, tokenizer, monkeypatch):
    import trl.trainer.base_trainer as base

    sent = []
    monkeypatch.setattr(base, "send_telemetry", lambda **told: sent.append(told))
    monkeypatch.delenv("CI", raising=False)
    trainer(tmp_path, tokenizer)
    assert not sent


# vLLM's correction


def test_vllms_correction_compares_with_the_whole_policy(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, kind=Fixed, schedule=[f"{ONE}:2"], max_steps=2)
    whole = tiny_model("qwen3")

    def sampled(prompt_ids, *_, **__):
        """As vLLM would: the responses with their log-probabilities under the whole policy."""
        made, _ = Fixed._generate_single_turn(run, prompt_ids)
        logprobs = []
        for prompt, ids in zip(prompt_ids, made, strict=True):
            with torch.no_grad():
                policy = whole(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            logprobs.append(policy.gather(-1, torch.tensor(ids)[:, None]).squeeze(-1).tolist())
        return made, logprobs

    run._generate_single_turn = sampled
    run.use_vllm, run._last_loaded_step = True, 0
    run.model.train()
    inputs = [{"prompt": prompt} for prompt in PROMPTS[:4] for _ in range(2)]
    batch = run._prepare_inputs(inputs)
    mask = batch["completion_mask"].bool()
    ratio = batch["importance_sampling_ratio"]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)
    internal = run._score(batch)[0]
    torch.testing.assert_close(batch["old_per_token_logps"][mask], internal[mask])
    run.whole = True
    assert (run._score(batch)[0] - internal)[mask].abs().max() > 0.1


# resuming


class StopAt(TrainerCallback):
    """Saves and stops at one update."""

    def __init__(self, update):
        self.update = update

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.update:
            control.should_save = control.should_training_stop = True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "written"), [(2, 2), (3, 4), (8, 8), (11, 12)], ids=["phase one", "within a batch", "epoch", "phase two"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, tokenizer, stop, written):
    options = {"schedule": [f"{ONE}:3"], "max_steps": 16, "save_strategy": "steps", "save_steps": 100}
    undisturbed = trainer(tmp_path / "whole", tokenizer, **options)
    undisturbed.train()
    trainer(tmp_path / "part", tokenizer, callbacks=[StopAt(stop)], **options).train()
    checkpoint = get_last_checkpoint(str(tmp_path / "part"))
    assert checkpoint == str(
        tmp_path / "part" / f"checkpoint-{written}"
    )  # a checkpoint due within a batch waits for its end
    record = Record()
    resumed = trainer(tmp_path / "part", tokenizer, callbacks=[record], **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    internal = [layers_of(record.changed(update)) <= {0, 1} for update in range(16 - written)]
    assert internal == [True] * max(0, 6 - written) + [False] * min(10, 16 - written)
    for a, b in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_checkpoints_are_written_at_the_end_of_generation_batches(tmp_path, tokenizer):
    trainer(tmp_path, tokenizer, max_steps=12, save_strategy="steps", save_steps=3).train()
    found = sorted(int(path.name.partition("-")[2]) for path in tmp_path.glob("checkpoint-*"))
    assert found == [4, 6, 10, 12]  # 3 -> 4, 6, 9 -> 10, 12


@pytest.mark.parametrize("more", [{}, {"metric_for_best_model": "reward"}])
def test_checkpoints_leave_no_card_in_the_folder_of_the_run(tmp_path, tokenizer, more):
    run = trainer(tmp_path, tokenizer, max_steps=2, save_strategy="steps", save_steps=2, save_only_model=True, **more)
    run._save_checkpoint(run.model, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0"]
    run.create_model_card()
    assert (tmp_path / "README.md").exists()


def test_resuming_a_finished_run_does_not_train(tmp_path, tokenizer):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    first = trainer(tmp_path, tokenizer, **options)
    first.train()
    again = trainer(tmp_path, tokenizer, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 4
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_that_fails_to_write_does_not_appear(tmp_path, tokenizer, monkeypatch):
    def full(self, folder):
        (Path(folder) / "scheduler.pt").write_bytes(b"half")
        raise OSError("No space left on device")

    run = trainer(tmp_path, tokenizer, max_steps=4, save_strategy="steps", save_steps=2)
    monkeypatch.setattr(BuPOTrainer, "_save_rng_state", full)
    with pytest.raises(OSError, match="No space"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_checkpoint_replaces_an_incomplete_one(tmp_path, tokenizer):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
    trainer(tmp_path, tokenizer, max_steps=2, save_strategy="steps", save_steps=2).train()
    assert checkpoints.is_whole(tmp_path / "checkpoint-2")
    assert not (tmp_path / checkpoints.PARTIAL).exists()


def test_save_total_limit_is_respected(tmp_path, tokenizer):
    trainer(tmp_path, tokenizer, max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=2).train()
    assert list(checkpoints.found(tmp_path)) == [8, 6]


def test_a_run_killed_before_it_removed_an_older_checkpoint_removes_it_when_it_goes_on(tmp_path, tokenizer):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, tokenizer, **options).train()
    assert list(checkpoints.found(tmp_path)) == [4, 2]
    again = trainer(tmp_path, tokenizer, save_total_limit=1, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert list(checkpoints.found(tmp_path)) == [4]


def test_the_newest_checkpoint_is_kept_when_the_clock_goes_backwards(tmp_path, tokenizer, monkeypatch):
    put = checkpoints.put

    def earlier(written, path):
        put(written, path)
        hours = int(path.name.partition("-")[2])
        then = 1e9 - 3600 * hours
        os.utime(path, (then, then))

    monkeypatch.setattr(checkpoints, "put", earlier)
    trainer(tmp_path, tokenizer, max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1).train()
    assert list(checkpoints.found(tmp_path)) == [4]


def test_the_best_checkpoint_can_be_loaded_at_the_end(tmp_path, tokenizer):
    problem = Problem((Message(role="user", content="What is 2 + 2?"),), "4")
    run = trainer(
        tmp_path, tokenizer, kind=Fixed, max_steps=4, eval_dataset=dataset_of([problem] * 2, None),
        eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="reward", save_total_limit=1,
    )  # fmt: skip
    run.train()
    assert checkpoints.is_whole(Path(run.state.best_model_checkpoint))


def test_every_epoch_has_its_own_order():
    sampler = EpochSampler(list(range(50)), 1, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]


# refusals


def test_a_missing_layer_is_rejected(tmp_path, tokenizer):
    with pytest.raises(InputError, match="layers are 0 to 2"):
        trainer(tmp_path, tokenizer, schedule=["3.resid_post:1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": [f"{ONE}:5"]}, "The schedule takes 5 steps, but training stops after 4"),
        ({"max_steps": 7}, "Try max_steps 6 or 8"),
    ],
)
def test_a_schedule_longer_than_training_is_rejected_before_the_first_step(tmp_path, tokenizer, options, said):
    run = trainer(tmp_path, tokenizer, **options)
    with pytest.raises(InputError, match=re.escape(said)):
        run.train()
    assert run.state.global_step == 0


def test_a_schedule_as_long_as_training_never_reaches_the_whole_policy(tmp_path, tokenizer):
    record = Record()
    trainer(tmp_path, tokenizer, schedule=[f"{ONE}:4"], callbacks=[record]).train()
    assert layers_of(set().union(*(record.changed(update) for update in range(8)))) == {0, 1}


def test_training_twice_runs_all_steps_twice(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, schedule=[f"{ONE}:1"], max_steps=4)
    run.train()
    run.train()
    assert run.state.global_step == 4


def test_training_after_an_error_starts_with_a_new_batch(tmp_path, tokenizer):
    class Once(Fixed):
        broken = False

        def _compute_loss(self, model, inputs):
            seen[-1].append(str(self.point))
            if len(seen) == 2 and len(seen[-1]) == 3 and not self.broken:
                self.broken = True
                raise KeyboardInterrupt
            return super()._compute_loss(model, inputs)

        def _generate_and_score_completions(self, inputs):
            seen.append([])
            return super()._generate_and_score_completions(inputs)

    seen.clear()
    run = trainer(tmp_path, tokenizer, kind=Once, schedule=[f"{ONE}:1"], max_steps=4)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    seen.clear()
    run.train()
    assert seen == [[ONE] * 4, ["final"] * 4]


def test_after_an_error_the_model_is_unchanged(tmp_path, tokenizer):
    class Broken(BuPOTrainer):
        def _compute_loss(self, model, inputs):
            super()._compute_loss(model, inputs)
            raise RuntimeError("broken")

    model = tiny_model("qwen3")
    hooks, names, before = hook_count(model), list(model.state_dict()), weights(model)
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, tokenizer, model, kind=Broken, schedule=[f"{ONE}:2"]).train()
    assert hook_count(model) == hooks
    assert list(model.state_dict()) == names
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


# problems


@pytest.mark.parametrize("chat", [None, {}])
def test_the_trainer_tokenizes_prompts_as_encode_problem_does(tmp_path, either, chat):
    ends = copy.deepcopy(either)
    begin, end = ("<s>", "</s>") if either.bos_token else ("<|bos|>", "<|im_end|>")
    pairs = [(name, either.convert_tokens_to_ids(name)) for name in (begin, end)]
    ends.backend_tokenizer.post_processor = TemplateProcessing(f"{begin} $A {end}", special_tokens=pairs)
    run = trainer(tmp_path, ends, tiny_model("llama"))
    problem = Problem((cast(Message, {"role": "user", "content": "What is 2 + 2?", "name": "Mia"}),), "4")
    row = dataset_of([problem, Problem((Message(role="user", content="3 + 4?"),), "7")], chat)[1]
    ids = run._tokenize_prompts([row["prompt"]])[0][0]
    assert tuple(ids) == encode_problem(ends, Problem((Message(role="user", content="3 + 4?"),), "7"), chat)


def test_the_trainer_and_generate_share_end_tokens(tmp_path, tokenizer):
    model = tiny_model("llama")
    model.generation_config.eos_token_id, model.config.eos_token_id = 0, 1
    run = trainer(tmp_path, tokenizer, model)
    assert run.eos_token_ids == run.generation_config.eos_token_id == sorted(end_ids(model, tokenizer)) == [0, 1, 2]
