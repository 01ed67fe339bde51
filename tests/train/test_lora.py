"""LoRA adapts the linear modules of every family's decoder layers, and trains them up to the hook point."""

import json
import re
import sys
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
from conftest import moved, saved, slow, tiny_model
from torch import Tensor
from trainer import trainer

from internal_policy.__main__ import main
from internal_policy.errors import InputError
from internal_policy.models import loading
from internal_policy.models.adapters import inside, of_peft
from internal_policy.models.families import family_of
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import policy_logits
from internal_policy.models.rows import FAMILIES
from internal_policy.train import defaults, lora

SAMPLE = ("llama", "gpt2", "phi3", "falcon", "qwen3_moe")
"""Families with separate and fused projections, with GPT-2's transposed weights, and with experts."""
NO_OUTPUT = ("mllama",)
"""Families without an output of layer 1, which reads images here."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ONE = HookPoint(1, "resid_post")
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning", "ignore:.*fan_in_fan_out.*"
)


def adapted(family: str = "llama", rank: int = 2):
    """A tiny model with an adapter that changes it."""
    model = tiny_model(family)
    return moved(peft.get_peft_model(model, lora.adapter(model, rank)))


def trained(model, point: HookPoint, input_ids: Tensor) -> dict[str, int]:
    """The parameters that get a gradient from the policy at a hook point, with their layers."""
    model.zero_grad()
    torch.log_softmax(policy_logits(model, point, input_ids=input_ids), -1)[..., 7].sum().backward()
    path = family_of(inside(model).config).layers
    found = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None and weight.grad.any():
            match = re.search(rf"{re.escape(path)}\.(\d+)\.", name)
            assert match, name
            found[name] = int(match[1])
    return found


def test_all_linear_modules_of_the_decoder_layers_are_adapted_and_no_others():
    names = lora.targets(tiny_model("llama"))
    assert len(names) == 3 * 7
    assert {name.rpartition(".")[2] for name in names} == {*LINEAR}
    assert all(name.startswith("model.layers.") for name in names)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("falcon", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_fused_projections_are_adapted(family, kinds):
    assert {name.rpartition(".")[2] for name in lora.targets(tiny_model(family))} == kinds


@pytest.mark.parametrize("family", [*SAMPLE, *slow(*(name for name in FAMILIES if name not in (*SAMPLE, *NO_OUTPUT)))])
def test_every_adapter_is_trained_up_to_the_hook_point_and_can_be_merged(family, input_ids):
    model = adapted(family)
    adapters = {name for name, weight in model.named_parameters() if weight.requires_grad}
    whole, below = trained(model, FINAL, input_ids), trained(model, ONE, input_ids)
    assert {*whole} == adapters
    assert below.keys() == {name for name, layer in whole.items() if layer <= ONE.layer}
    with torch.no_grad():
        before = model(input_ids).logits
        after = lora.merged(model)(input_ids).logits
    torch.testing.assert_close(after, before, atol=1e-4 if before.dtype == torch.float32 else 1e-5, rtol=1e-5)


def test_what_peft_would_turn_into_experts_is_left_alone():
    model = tiny_model("deepseek_v3")  # its first layer has a plain FFN
    names = lora.targets(model)
    adapted = peft.get_peft_model(model, lora.adapter(model, 2))
    found = {name for name, module in inside(adapted).named_modules() if hasattr(module, "lora_A")}
    assert found == {*names}
    assert not any("mlp" in name for name in names)


def test_targets_can_be_named_but_never_the_unembedding():
    names = lora.targets(tiny_model("llama"), ["q_proj", "v_proj"])
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    for wrong in ("lm_head", "embed_tokens", "proj"):
        with pytest.raises(InputError, match=f"no linear module '{wrong}' in the decoder layers.* They have q_proj"):
            lora.targets(tiny_model("llama"), ["q_proj", wrong])


def test_the_adapter_is_scaled_by_twice_its_rank_and_has_no_dropout():
    config = lora.adapter(tiny_model("llama"), 4)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.0)
    assert lora.adapter(tiny_model("llama"), 4, 6).lora_alpha == 6


def test_an_adapter_gets_no_second_one():
    with pytest.raises(InputError, match="is an adapter already"):
        lora.adapter(adapted(), 2)


def test_peft_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'internal-policy\[peft\]'"):
        lora.adapter(tiny_model("llama"), 2)


def test_the_default_learning_rate_is_ten_times_that_of_all_weights(tmp_path):
    flags = {"schedule": [], "lora": True}
    assert defaults.configured(tmp_path, {}, flags).learning_rate == pytest.approx(1e-5)
    assert defaults.configured(tmp_path, {"learning_rate": 2e-6}, flags).learning_rate == 2e-6


def test_the_configuration_trains_an_adapter(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, lora=True, lora_rank=2, lora_targets=["q_proj"], schedule=["1.resid_post:2"])
    assert of_peft(run.model)
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    run.train()
    changed = [name for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])]
    assert changed
    assert all("lora_" in name and "q_proj" in name for name in changed)
    assert lora.in_words(run.model).startswith("LoRA of rank 2 trains 384 of 44,176 weights, in q_proj.")


@pytest.mark.slow
def test_a_resumed_adapter_equals_an_uninterrupted_one(tmp_path, tokenizer):
    options = {"lora": True, "lora_rank": 2, "schedule": ["1.resid_post:1"], "max_steps": 4}
    whole = trainer(tmp_path / "whole", tokenizer, **options, save_strategy="steps", save_steps=2)
    whole.train()
    again = trainer(tmp_path / "part", tokenizer, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, a), b in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), name


# the command

FEW = ["--prompts", "2", "--samples", "2", "--micro-batch", "4", "--max-new-tokens", "4", "--steps", "1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The bundled model with float32 weights."""
    model, tokenizer = loading.load("demo-qwen3", dtype="float32")
    return saved(cast(Any, model), cast(Any, tokenizer), tmp_path_factory.mktemp("base"))


@pytest.fixture
def asked(base, tmp_path, monkeypatch) -> list[str]:
    """A short training of a model that is named by a relative path, with a reward that always has spread."""
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(base)
    Path("mine.py").write_text("def reward(completions, **columns): return [*range(len(completions))]")
    few = [*FEW, "--scan-every", "0", "--method", "grpo", "--learning-rate", "1e-2", "--temperature", "9"]
    return ["train", "--model", "base", *few, "--reward", "mine.py"]


def test_a_run_saves_an_adapter_that_is_a_model_from_any_folder(base, asked, capsys, monkeypatch, tmp_path):
    assert main([*asked, "--lora", "--lora-rank", "2", "-o", "run"]) == 0
    assert "LoRA of rank 2 trains 38,912 of " in capsys.readouterr().err
    config = json.loads(Path("run/model/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["revision"]) == (str(base.resolve()), 2, None)
    assert not Path("run/model/model.safetensors").exists()
    monkeypatch.chdir("/")
    assert of_peft(loading.load(str(tmp_path / "run" / "model"))[0])


@pytest.mark.slow
def test_a_saved_adapter_can_be_scanned_and_equals_the_merged_model(base, asked, capsys, monkeypatch, tmp_path):
    assert main([*asked, "--lora", "--lora-rank", "2", "-o", "adapter"]) == 0
    assert main([*asked, "--lora", "--lora-rank", "2", "--merge", "-o", "merged"]) == 0
    assert not (tmp_path / "merged" / "model" / "adapter_config.json").exists()
    monkeypatch.chdir("/")
    folders = [tmp_path / name / "model" for name in ("adapter", "merged")]
    (one, tokenizer), (other, _), (start, _) = (loading.load(str(folder)) for folder in [*folders, base])
    ids = torch.tensor([tokenizer("What is 3 + 4?")["input_ids"]])
    with torch.no_grad():
        a, b, before = (model(ids).logits for model in (one, other, start))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    assert (a - before).abs().max() > 0.1
    capsys.readouterr()
    assert main(["scan", "--model", str(folders[0]), "--limit", "1", "--max-new-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "qwen3"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--lora-rank", "4"], "--lora-rank has no effect without --lora"),
        (["--lora-targets", "q_proj"], "--lora-targets has no effect without --lora"),
        (["--lora", "--lora-rank", "0"], "--lora-rank is 0. Use a number from 1"),
        (["--lora", "--lora-alpha", "0"], "--lora-alpha is 0. Use a number from 1"),
        (["--merge"], "--merge needs an adapter. Add --lora"),
        (
            ["--lora", "--lora-targets", "q_proj", "lm_head"],
            "There is no linear module 'lm_head' in the decoder layers",
        ),
    ],
)
def test_options_of_lora_that_cannot_be_used_are_refused(more, said, asked, capsys):
    assert main([*asked, *more]) == 2
    assert said in capsys.readouterr().err
