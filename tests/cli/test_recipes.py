"""The recipes are what the paper did, and the command that each names can be given."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate.commands.launch import launch_command_parser
from conftest import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, TrainingArguments

from internal_policy import bundle
from internal_policy.cli import parsing, train_configuration
from internal_policy.cli.commands import COMMANDS
from internal_policy.cli.main import main
from internal_policy.cli.train import Train
from internal_policy.models.checkpoint import Checkpoint
from internal_policy.models.hooks import HookPoint
from internal_policy.models.modules import decoder_layers
from internal_policy.models.tokenizers import load_tokenizer
from internal_policy.tasks.problems import Message, Problem
from internal_policy.tasks.prompts import encode_problem, split_messages
from internal_policy.train import fields
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.schedule import Phase

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "recipes"
GPUS = 8
LORA = "one-gpu-lora"
RECIPES = {  # model, its depth, its family, the layer from 0, internal steps, length of a response
    "qwen3-4b": ("Qwen/Qwen3-4B", 36, "qwen3", 5, 30, 7168),
    "qwen3-8b": ("Qwen/Qwen3-8B", 36, "qwen3", 5, 20, 7168),
    "octothinker-3b": ("OctoThinker/OctoThinker-3B-Long-Base", 28, "llama", 26, 20, 3072),
    "octothinker-8b": ("OctoThinker/OctoThinker-8B-Long-Base", 32, "llama", 30, 20, 3072),
}


@pytest.fixture(params=RECIPES)
def name(request) -> str:
    return request.param


def command(name: str, beginning: str) -> list[str]:
    """The words of the command with this beginning in the recipe's comment."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip("# ").startswith(beginning))
    end = next(number for number in range(start, len(lines)) if not lines[number].endswith("\\"))
    return shlex.split(" ".join(line.strip("# \\") for line in lines[start : end + 1]))


def launched(name: str):
    """What accelerate makes of the command in the recipe's comment."""
    return launch_command_parser().parse_args(command(name, "accelerate launch")[2:])


def asked_of(name: str, more: str = "") -> Train:
    """What the command line makes of the rest of it."""
    found = parsing.parse(COMMANDS, [*launched(name).training_script_args, *more.split()])
    assert isinstance(found, Train)
    return found


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """The configuration that each of 8 processes gets, made by the command's own code.

    Two things are not as on the GPUs: where TRL asks how many processes have met it is told 8, since none are there to
    meet, and `use_cpu` lets bf16 pass.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WORLD_SIZE", str(GPUS))
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: GPUS))
    monkeypatch.setattr(TrainingArguments, "device", property(lambda _: torch.device("cpu")))

    def make(name: str, more: str = "") -> BuPOConfig:
        options = asked_of(name, more)
        given = {**fields.read(bundle.recipe(options.config)), "use_cpu": True}
        return train_configuration.configured(train_configuration.resolved(options, given), given, tmp_path, None)

    return make


def test_the_command_starts_8_sharded_processes_of_this_program(name):
    launch = launched(name)
    assert (launch.num_processes, launch.use_fsdp, launch.fsdp_version) == (GPUS, True, "2")
    assert (launch.module, launch.training_script) == (True, "internal_policy")
    assert launch.fsdp_state_dict_type == "FULL_STATE_DICT"
    assert launch.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"


def test_the_command_names_its_recipe_and_its_model(name):
    asked = asked_of(name)
    assert asked.config == name
    assert (asked.model, asked.scan_every) == (RECIPES[name][0], 0)
    assert train_configuration.resolved(asked, fields.read(bundle.recipe(asked.config))).method == "bupo"
    assert asked.dtype == "float32"
    assert asked.chat_template in (None, "base")


def test_the_sharded_class_is_the_decoder_layer_of_the_family(name):
    layers = decoder_layers(tiny_model(RECIPES[name][2]))
    assert launched(name).fsdp_transformer_layer_cls_to_wrap == type(layers[0]).__name__


def test_a_step_is_8_responses_to_128_prompts_in_16_updates(name, configured):
    config = configured(name)
    assert (config.generation_batch_size, config.num_generations) == (1024, 8)
    assert config.updates_per_step == 16
    assert config.per_device_train_batch_size * GPUS * config.gradient_accumulation_steps * 16 == 1024


def test_a_run_is_300_steps(name, configured):
    config = configured(name)
    assert config.max_steps == 300 * config.updates_per_step
    assert config.save_steps == 100 * config.updates_per_step


def test_the_scripts_4_updates_are_four_options_away(name, configured):
    config = configured(name, "--prompts 128 --updates 4 --steps 300 --save-every 100")
    assert (config.generation_batch_size, config.updates_per_step) == (1024, 4)
    assert (config.max_steps, config.save_steps) == (1200, 400)


def test_four_gpus_take_the_same_batch_with_two_options(name, configured, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: 4))
    config = configured(name, "--prompts 128 --updates 16")
    assert (config.generation_batch_size, config.updates_per_step, config.max_steps) == (1024, 16, 4800)


def test_the_papers_layer_is_trained_for_its_steps_and_is_there(name, configured):
    _, depth, _, layer, steps, _ = RECIPES[name]
    assert configured(name).phases == (Phase(HookPoint(layer, "resid_post"), steps),)
    assert layer < depth


def test_loss_and_optimizer_are_the_papers(name, configured):
    config = configured(name)
    assert (config.loss_type, config.scale_rewards, config.beta) == ("grpo", "group", 0.0)
    assert (config.epsilon, config.epsilon_high, config.delta) == (0.2, None, 10.0)
    assert (config.learning_rate, config.lr_scheduler_type, config.warmup_steps) == (1e-6, "constant", 0)
    assert (config.weight_decay, config.max_grad_norm) == (0.01, 1.0)
    assert config.readout == "raw"


def test_prompt_and_response_fit_what_vllm_takes(name, configured):
    config = configured(name)
    assert config.max_completion_length == RECIPES[name][5]
    assert config.vllm_max_model_length == 1024 + config.max_completion_length
    assert (config.use_vllm, config.vllm_mode) == (True, "colocate")
    assert config.temperature == config.top_p == 1.0
    assert not config.vllm_importance_sampling_correction


def test_memory_is_saved_on_gpus(name, configured):
    config = configured(name)
    assert config.bf16
    assert config.gradient_checkpointing
    assert config.cast_lm_head_to_fp32


def test_there_are_no_other_recipes():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*RECIPES, LORA}


# one GPU


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """The configuration of the recipe for one GPU; `use_cpu` lets bf16 pass."""
    monkeypatch.chdir(ROOT)

    def make(more: str = "") -> BuPOConfig:
        asked: Any = parsing.parse(COMMANDS, [*command(LORA, "internal-policy train")[1:], *more.split()])
        assert (asked.config, asked.model, asked.dtype) == (LORA, "Qwen/Qwen3-4B", "float32")
        given = {**fields.read(bundle.recipe(asked.config)), "use_cpu": True}
        return train_configuration.configured(train_configuration.resolved(asked, given), given, tmp_path, None)

    return make


def test_the_recipe_for_one_gpu_trains_32_prompts_in_4_updates_for_200_steps(alone):
    config = alone()
    assert (config.generation_batch_size, config.num_generations, config.updates_per_step) == (256, 8, 4)
    assert (config.max_steps, config.save_steps) == (200 * 4, 20 * 4)
    assert config.phases == (Phase(HookPoint(5, "resid_post"), 20),)


def test_half_the_responses_at_a_time_leave_the_updates_as_they_are(alone):
    config = alone("--micro-batch 2 --prompts 32 --updates 4")
    assert (config.per_device_train_batch_size, config.updates_per_step, config.max_steps) == (2, 4, 800)


def test_the_recipe_for_one_gpu_uses_lora_and_vllm(alone):
    config = alone()
    assert (config.lora, config.lora_rank, config.learning_rate) == (True, 32, 1e-5)
    assert (config.use_vllm, config.vllm_mode) == (True, "colocate")
    assert config.vllm_max_model_length == 1024 + config.max_completion_length
    assert (config.bf16, config.gradient_checkpointing, config.cast_lm_head_to_fp32) == (True, True, True)


def test_the_memory_of_the_recipe_is_what_the_sizes_give(alone):
    config = alone()
    about = Qwen3Config(
        vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(about)
    weights = sum(weight.numel() for weight in model.parameters())
    layer = [part for part in decoder_layers(model)[0].modules() if isinstance(part, torch.nn.Linear)]
    adapter = about.num_hidden_layers * config.lora_rank * sum(part.in_features + part.out_features for part in layer)
    longest = config.vllm_max_model_length
    parts = {
        "frozen weights": 4 * weights,
        "adapter": 16 * adapter,
        "checkpoints": 36 * config.per_device_train_batch_size * longest * 2560 * 4,
        "vLLM": config.vllm_gpu_memory_utilization * 80e9,
    }
    text = (FOLDER / f"{LORA}.yaml").read_text()
    shown = {name: float(size) for size, name in re.findall(r"^# +([\d.]+) GB  ([\w ]+)", text, re.M)}
    assert shown == {**{name: round(size / 1e9, 1) for name, size in parts.items()}, "sum": 55.2}
    assert sum(shown.values()) == pytest.approx(2 * 55.2)
    assert f"{weights:,} weights" in text
    assert f"{adapter:,} weights" in text
    assert f"{36 * 2 * 8 * 128 * 2 * longest / 1e9:.3f} GB" in text


# the prompt of a base model


@pytest.fixture
def base(tokenizer, tmp_path) -> transformers.PreTrainedTokenizerBase:
    """A tokenizer with a BOS and without a chat template, loaded with the one of the recipes."""
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|bos|>", eos_token="<|endoftext|>"
    )
    plain.save_pretrained(tmp_path)
    return load_tokenizer(Checkpoint(str(tmp_path)), str(FOLDER / "base.jinja"))


ASKED = (Message(role="system", content="Use \\boxed{}."), Message(role="user", content="What is 2 + 2?"))


def test_a_base_model_reads_instructions_and_question_after_one_bos(base):
    ids = encode_problem(base, Problem(ASKED, "4"), {})
    assert base.decode(ids) == "<|bos|>Use \\boxed{}.\nQuestion: What is 2 + 2?\nAnswer:"
    assert ids.count(base.bos_token_id) == 1


def test_its_response_is_told_from_the_prompt(base):
    answered = Message(role="assistant", content="\\boxed{4}")
    prompt, response = split_messages(base, [*ASKED, answered], {})
    assert prompt == encode_problem(base, Problem(ASKED, "4"), {})
    assert base.decode(response) == " \\boxed{4}<|endoftext|>"


def test_a_recipe_has_a_name_and_any_other_file_keeps_its_own():
    assert bundle.recipe("qwen3-4b") == str(FOLDER / "qwen3-4b.yaml")
    assert bundle.recipe("base") == str(FOLDER / "base.jinja")
    assert [bundle.recipe(name) for name in (None, "mine.yaml", "none", "qwen3-4b.yaml")] == [
        *(None, "mine.yaml", "none", "qwen3-4b.yaml")
    ]


def test_train_takes_a_bundled_recipe_by_name(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "qwen3-4b", "--target", "align"]) == 2
    assert capsys.readouterr().err == (
        f"error: The schedule of {FOLDER / 'qwen3-4b.yaml'} says what is trained, so --target has no effect. "
        "Remove one of them.\n"
    )
