"""Training reads the log-probabilities of the right policy in models of every kind."""

from typing import Any

import pytest
import torch
from conftest import tiny_model
from trainer import trainer, weights

from internal_policy.errors import InputError
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import policy_logits
from internal_policy.models.rows import FAMILIES
from internal_policy.models.tiny import EXACT, auto_class, randomized, tiny_config
from internal_policy.train import dropout
from internal_policy.train.configuration import BuPOConfig
from internal_policy.train.padding import UNTRAINABLE
from internal_policy.train.run import check

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
KINDS = {
    "qwen3": "norms before the modules",
    "gpt_neox": "attention and FFN in parallel",
    "cohere2": "in parallel, behind one norm, with scaled logits and a sliding window",
    "gemma2": "norms on both sides, capped logits and a sliding window",
    "glm4": "norms on both sides",
    "olmo2": "norms after the modules",
    "granite": "residual multiplier and divided logits",
    "gpt_oss": "experts and a sliding window",
    "qwen3_moe": "experts",
    "phi3": "dropout after the modules",
    "phi": "an unembedding with a bias",
    "gpt2": "learned positions",
    "qwen3_next": "layers with linear attention",
    "nemotron_h": "layers with attention or an FFN",
    "lfm2": "layers with convolutions",
    "jamba": "state-space layers and experts",
    "qwen2_vl": "the language model of a vision-language model",
    "llava": "the language model of a vision-language model",
}
"""Row -> what its models have that others haven't."""

SAMPLE = ("gemma2", "gpt_neox", "qwen3_moe", "nemotron_h")
EVERY = [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in KINDS]


@pytest.mark.parametrize("family", EVERY)
def test_log_probabilities_are_those_of_the_policy(family, tokenizer, tmp_path):
    model: Any = tiny_model(family)
    ids = torch.randint(5, 256, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    run = trainer(tmp_path, tokenizer, model, schedule=["1.resid_post:1"], bf16=False)
    run.model.train()
    for point in (HookPoint(1, "resid_post"), FINAL):
        run.point = point
        found = run._get_per_token_logps_and_entropies(run.model, ids, mask, 5)[0]
        logits = policy_logits(run.model, point, input_ids=ids, attention_mask=mask)[:, -6:-1].double()
        own = logits.log_softmax(-1).gather(-1, ids[:, -5:, None])[..., 0]
        torch.testing.assert_close(found.double(), own, atol=3e-5, rtol=0)


TRAINED = [
    pytest.param(name, marks=[] if name == "gemma2" else pytest.mark.slow)
    for name in ("gemma2", "qwen3", "gpt_neox", "qwen3_moe", "gpt_oss", "nemotron_h", "qwen2_vl")
]


@pytest.mark.parametrize("family", TRAINED)
def test_an_internal_policy_and_then_the_whole_one_are_trained(family, tokenizer, tmp_path):
    model: Any = tiny_model(family).float()
    before = weights(model)
    run = trainer(tmp_path, tokenizer, model, schedule=["1.resid_post:1"], max_steps=4)
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert [("internal/entropy" in entry) for entry in logged] == [True, True, False, False]
    changed = {name for name, weight in weights(run.model).items() if not torch.equal(weight, before[name])}
    assert any(".layers.0." in name for name in changed)
    assert all(torch.isfinite(weight).all() for weight in weights(run.model).values())


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("biogpt", "ctrl", "gpt_neo", "nemotron_h", "jamba", "qwen3")
        ),
    ],
)
def test_padding_before_a_prompt_changes_nothing(family, tokenizer, tmp_path):
    model: Any = tiny_model(family).float()
    ids = torch.randint(5, 256, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    run = trainer(tmp_path, tokenizer, model, schedule=["1.resid_post:1"])
    run.model.train()
    for point in (HookPoint(1, "resid_post"), FINAL):
        run.point = point
        padded = run._get_per_token_logps_and_entropies(run.model, ids, mask, 4)[0][1]
        alone = run._get_per_token_logps_and_entropies(run.model, ids[1:, 3:], mask[1:, 3:], 4)[0][0]
        torch.testing.assert_close(padded, alone, atol=1e-3, rtol=0)


def noisy(family: str) -> Any:
    """A model whose every rate of dropout and noise is a half."""
    config = tiny_config(family)
    text = config.get_text_config()
    for name, rate in vars(text).items():
        fixed = name in FAMILIES[family].needs
        if ("drop" in name or "jitter" in name) and isinstance(rate, int | float) and not fixed:
            setattr(text, name, 0.5)
    return randomized(lambda: auto_class(FAMILIES[family]).from_config(config, **EXACT)).float()


NOISY = ("gpt2", "llama", "mixtral", "falcon")
EXCLUDED = {"diffllama": "refuses dropout", **UNTRAINABLE}


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in NOISY else pytest.mark.slow) for name in FAMILIES if name not in EXCLUDED],
)
def test_dropout_and_noise_are_off_in_training(family):
    model, ids = noisy(family), torch.randint(5, 200, (2, 7), generator=torch.Generator().manual_seed(2))
    expected = model(ids, attention_mask=torch.ones_like(ids)).logits
    model.train()
    dropout.disable(model)
    assert torch.equal(model(ids, attention_mask=torch.ones_like(ids)).logits, expected)


@pytest.mark.parametrize("disable", [True, False])
def test_the_trainer_turns_dropout_off_unless_told_otherwise(disable, tokenizer, tmp_path):
    """As GPT-2 is published, with dropout of 0.1."""
    model: Any = tiny_model("gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1).float()
    options = {} if disable else {"disable_dropout": False}
    run = trainer(tmp_path, tokenizer, model, **options)
    run.model.train()
    ids = torch.randint(5, 256, (2, 9), generator=torch.Generator().manual_seed(2))
    once, again = (run._get_per_token_logps_and_entropies(model, ids, torch.ones_like(ids), 4)[0] for _ in range(2))
    assert torch.equal(once, again) == disable
    assert model.config.attn_pdrop == 0.1


@pytest.mark.parametrize("family", ["rwkv", "xlstm", "recurrent_gemma", "llama4_text", "phimoe"])
def test_a_model_that_cannot_be_trained_is_refused_before_work_starts(family, tokenizer, tmp_path):
    model = tiny_model(family)
    why = f"{family} can't be trained"
    with pytest.raises(InputError, match=why):
        trainer(tmp_path, tokenizer, model)
    with pytest.raises(InputError, match=why):
        check(model.config, tokenizer, [], None, BuPOConfig(output_dir=str(tmp_path), use_cpu=True))
