"""Frozen parts of a model don't change, and upper layers can have a learning rate of their own."""

import re

import pytest
import torch
from conftest import tiny_model
from trainer import Fixed, trainer, weights

from internal_policy.errors import InputError
from internal_policy.train import freezing
from internal_policy.train.freezing import Frozen, Parts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
EMBEDDINGS, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
FAMILIES = ["llama", "qwen3", "gpt2", "gpt_neox", "gemma3_text", "mixtral", "mamba"]


def changed(run) -> set[str]:
    """The parts of a model that training changed: numbers of layers, and names of weights outside of them."""
    before = weights(run.model)
    run.train()
    after = weights(run.model)
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {match[1] if (match := re.search(r"layers\.(\d+)", name)) else name for name in names}


@pytest.mark.parametrize(
    ("text", "layers", "names"),
    [("0-2", {0, 1, 2}, set()), ("0-1,4", {0, 1, 4}, set()), ("3, embeddings,head", {3}, {"embeddings", "head"})],
)
def test_parts_are_parsed_from_text(text, layers, names):
    assert Parts.parse(text) == Parts(frozenset(layers), frozenset(names))


@pytest.mark.parametrize("text", ["", "5-", "3-1", "-1", "0-4,", "lm_head", "9999999"])
def test_invalid_parts_are_refused(text):
    with pytest.raises(InputError, match="isn't a part of a model"):
        Parts.parse(text)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"frozen_layers": "0-1"}, ("2", EMBEDDINGS, NORM, HEAD)),
        ({"frozen_layers": "0,embeddings,head,norm"}, ("1", "2")),
        ({"only_layers": "1"}, ("1",)),
        ({"only_layers": "2,head"}, ("2", HEAD)),
        ({"frozen_layers": "0", "schedule": ["1.resid_post:1"]}, ("1", EMBEDDINGS, HEAD)),
        ({"only_layers": "1", "schedule": ["1.resid_post:1"]}, ("1",)),
    ],
    ids=str,
)
def test_frozen_parts_do_not_change(tmp_path, tokenizer, options, expected):
    model = tiny_model("llama", tie_word_embeddings=False)
    assert changed(trainer(tmp_path, tokenizer, model, kind=Fixed, max_steps=2, **options)) == {*expected}


def test_freezing_tied_embeddings_freezes_the_head(tmp_path, tokenizer):
    model = tiny_model("llama", tie_word_embeddings=True)
    run = trainer(tmp_path, tokenizer, model, kind=Fixed, max_steps=2, frozen_layers="head")
    assert changed(run) == {"0", "1", "2", NORM}


def test_adapters_of_frozen_layers_do_not_change(tmp_path, tokenizer):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    run = trainer(tmp_path, tokenizer, kind=Fixed, max_steps=2, peft_config=lora, only_layers="1")
    assert changed(run) == {"1"}
    base = [weight for name, weight in run.model.named_parameters() if "lora_" not in name]
    assert not any(weight.requires_grad for weight in base)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_model_are_all_of_its_weights(family):
    model = tiny_model(family)
    parts = freezing.parameters(model)
    found = {id(each) for weights in parts.values() for each in weights}
    assert found == {id(each) for each in model.parameters()}
    assert all(parts[layer] for layer in range(model.config.num_hidden_layers))


@pytest.mark.parametrize(
    ("frozen", "phases", "scale", "said"),
    [
        ({"frozen_layers": "0-3"}, [], 1.0, "frozen_layers is 0-3, but there is no layer 3: they are 0 to 2."),
        ({"only_layers": "7"}, [], 1.0, "only_layers is 7, but there is no layer 7"),
        ({"frozen_layers": "0-1"}, ["1.resid_post:2"], 1.0, "1.resid_post trains layers 0 to 1, which are all frozen"),
        ({"only_layers": "2"}, ["0.mlp_out:2"], 1.0, "only_layers is 2, but 0.mlp_out trains layer 0, which is frozen"),
        ({"frozen_layers": "0-2,embeddings,norm,head"}, [], 1.0, "which leaves nothing to train"),
        ({"frozen_layers": "0", "only_layers": "1"}, [], 1.0, "Remove frozen_layers"),
        ({}, [], 2.0, "layer_lr_scale needs a schedule"),
        ({}, ["2.resid_post:2"], 2.0, "layer_lr_scale needs layers above 2.resid_post"),
    ],
)
def test_what_leaves_nothing_to_train_is_refused(tmp_path, tokenizer, frozen, phases, scale, said):
    model = tiny_model("llama", tie_word_embeddings=False)
    with pytest.raises(InputError, match=re.escape(said)):
        trainer(tmp_path, tokenizer, model, schedule=phases, layer_lr_scale=scale, **frozen)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
def test_layers_above_the_first_phase_have_a_learning_rate_of_their_own(tmp_path, tokenizer, lora):
    from peft import LoraConfig

    options = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)} if lora else {}
    run = trainer(tmp_path, tokenizer, schedule=["1.resid_post:1"], layer_lr_scale=0.5, kind=Fixed, **options)
    run.create_optimizer()
    names = {id(weight): name for name, weight in run.model.named_parameters()}
    rates = {names[id(each)]: group["lr"] for group in run.optimizer.param_groups for each in group["params"]}
    assert {name for name, rate in rates.items() if rate == 5e-3} == {name for name in rates if "layers.2." in name}
    assert run.optimizer.param_groups[0]["lr"] == 1e-2
    assert len(rates) == sum(weight.requires_grad for weight in run.model.parameters())


def test_a_run_with_scaled_rates_resumes_and_logs_the_lower_layers_rate(tmp_path, tokenizer):
    options = {"kind": Fixed, "schedule": ["1.resid_post:1"], "layer_lr_scale": 0.5, "max_steps": 4}
    whole = trainer(tmp_path, tokenizer, **options, save_strategy="steps", save_steps=2)
    whole.train()
    assert whole.state.log_history[0]["learning_rate"] == 1e-2
    resumed = trainer(tmp_path, tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = weights(resumed.model)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(whole.model).items())


def test_what_is_frozen_is_said_in_a_sentence():
    model = tiny_model("llama", tie_word_embeddings=False)
    assert freezing.in_words(model) is None
    freezing.freeze(model, Frozen.of("0-1,embeddings", None))
    assert freezing.in_words(model) == "Frozen: layers 0-1, embeddings."


def test_of_a_model_with_adapters_only_frozen_adapters_are_said():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    assert freezing.in_words(model) is None
    freezing.freeze(model, Frozen.of("0-1,embeddings", None))
    assert freezing.in_words(model) == "Frozen: layers 0-1."
