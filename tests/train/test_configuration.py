"""Invalid training configurations fail early with a one-line error."""

import re
from typing import Any, cast

import pytest
from trainer import trainer
from transformers import HfArgumentParser
from trl.scripts.utils import TrlParser
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from internal_policy.errors import InputError
from internal_policy.train.bupo import BuPOTrainer
from internal_policy.train.configuration import BuPOConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
ONE = "1.resid_post"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": [f"{ONE}:1"], "use_liger_kernel": True}, "use_liger_kernel"),
        ({"schedule": [f"{ONE}:1"], "use_vllm": True, "off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold"),
        ({"readout": "tuned"}, "raw or norm"),
        ({"schedule": ["7.resid_post"]}, "isn't a phase"),
        ({"schedule": f"{ONE}:1"}, "Give a list of phases: ['1.resid_post:1']"),
        ({"loss_type": "gppo"}, "loss_type is gppo; it must be one of grpo, dapo"),
        ({"scale_rewards": "sideways"}, "scale_rewards is sideways; it must be one of group, batch, none"),
        ({"max_completion_length": 0}, "max_completion_length is 0. Use 1 or more"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0. Use 1 or more"),
        ({"use_vllm": True}, "use_vllm needs vLLM, which isn't installed"),
        ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "deepspeed isn't installed"),
        ({"eval_strategy": "steps", "eval_steps": 2}, "eval_strategy needs an eval_dataset"),
        ({"num_generations": 3}, "Try num_generations 2, 4, 8, or batches of 6 or 9 responses"),
        ({"num_generations": 1}, "Use 2 or more"),
        ({"gradient_accumulation_steps": 3}, "Try gradient_accumulation_steps 1, 2, 4"),
        ({"steps_per_generation": None, "generation_batch_size": 7}, "Try 6 or 8"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant"),
    ],
)
def test_an_invalid_configuration_gets_a_one_sentence_error(tmp_path, tokenizer, options, said):
    with pytest.raises(InputError, match=re.escape(said)):
        trainer(tmp_path, tokenizer, **options)


def test_configurations_are_checked_before_a_model_is_loaded(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "__init__", None)
    with pytest.raises(InputError, match=r"args is a GRPOConfig\. Give a BuPOConfig"):
        BuPOTrainer("nowhere", args=cast(Any, GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)))
    invalid: list[dict[str, Any]] = [{"use_vllm": True}, {"eval_strategy": "steps", "eval_steps": 2}]
    for options in invalid:
        with pytest.raises(InputError):
            BuPOTrainer("nowhere", args=BuPOConfig(output_dir=str(tmp_path), use_cpu=True, **options))


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_the_parsers_of_transformers_and_trl_read_the_configuration(tmp_path, parser):
    arguments = ["--output_dir", str(tmp_path), "--schedule", f"{ONE}:2", "2.mlp_out:3", "--use_cpu", "true"]
    (config,) = parser(BuPOConfig).parse_args_into_dataclasses(arguments)
    assert config == BuPOConfig(output_dir=str(tmp_path), schedule=[f"{ONE}:2", "2.mlp_out:3"], use_cpu=True)


def test_trls_parser_reads_a_configuration_file(tmp_path):
    file = tmp_path / "given.yaml"
    file.write_text(f"schedule: [{ONE}:2]\nlr_scheduler_type: cosine\ngradient_checkpointing: true\nuse_cpu: true\n")
    (config,) = TrlParser(cast(Any, BuPOConfig)).parse_args_and_config(
        ["--config", str(file), "--output_dir", str(tmp_path)]
    )
    assert (config.schedule, config.lr_scheduler_type, config.gradient_checkpointing) == ([f"{ONE}:2"], "cosine", True)


def test_the_defaults_are_those_of_the_paper():
    config = BuPOConfig(output_dir="unused", use_cpu=True, report_to=[])
    assert (config.loss_type, config.beta, config.epsilon, config.scale_rewards) == ("grpo", 0.0, 0.2, "group")
    assert (config.num_generations, config.learning_rate, config.temperature) == (8, 1e-6, 1.0)


@pytest.mark.parametrize(
    ("given", "needed"),
    [({"switch_every": 2}, "switch_below"), ({"lora_rank": 4}, "lora"), ({"lora_targets": ["q_proj"]}, "lora")],
)
def test_fields_without_effect_are_refused(tmp_path, given, needed):
    with pytest.raises(InputError, match=f"has no effect without {needed}"):
        BuPOConfig(output_dir=str(tmp_path), use_cpu=True, **given)
