"""Policies of a PEFT model are those of the model with its adapters."""

import peft
import pytest
import torch
from conftest import all_points, moved, tiny_model
from torch import nn
from trainer import trainer, weights

from internal_policy.errors import InputError
from internal_policy.models.adapters import inside
from internal_policy.models.head import unembedding
from internal_policy.models.hooks import FINAL, HookPoint, hooked
from internal_policy.models.policy import as_policy, policy_logits, unembed
from internal_policy.scans.scan import scan
from internal_policy.tasks.generate import generate
from internal_policy.tasks.problems import Problem
from internal_policy.tasks.rollouts import of_ids
from internal_policy.train.dynamics import measure

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*RMSNorm:UserWarning"),
]
ONE = HookPoint(1, "resid_post")
LINEAR = ["q_proj", "v_proj", "down_proj"]
KINDS = {
    "LORA": peft.LoraConfig(r=4, target_modules=LINEAR),
    "DORA": peft.LoraConfig(r=4, target_modules=LINEAR, use_dora=True),
    "ADALORA": peft.AdaLoraConfig(target_modules=LINEAR, total_step=10),
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LOHA": peft.LoHaConfig(r=4, target_modules=LINEAR),
    "LOKR": peft.LoKrConfig(r=4, target_modules=LINEAR),
    "OFT": peft.OFTConfig(oft_block_size=4, target_modules=["q_proj", "v_proj"]),
    "HRA": peft.HRAConfig(r=4, target_modules=LINEAR),
    "LN_TUNING": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]),
    "VERA": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "FOURIERFT": peft.FourierFTConfig(n_frequency=20, target_modules=LINEAR),
}
"""Kinds of adapters that only change modules."""


def entropies(model, rollout):
    """Entropies of the model's own policy in nats, where each response token is predicted."""
    logits = model(torch.tensor([rollout.ids])).logits[0, len(rollout.prompt_ids) - 1 : -1]
    return torch.distributions.Categorical(logits=logits).entropy()


def scanned(model, tokenizer, rollout):
    """The same entropies from a scan."""
    found = scan(model, tokenizer, [rollout], readouts=("raw",), measures=("entropy",), top_k=0)
    return torch.tensor(found.policies["final.entropy"].dropna().to_numpy()).double()


def lora(**changes):
    """A tiny Llama in a PeftModel whose LoRA changes it."""
    options = {"r": 4, "target_modules": LINEAR, **changes}
    return moved(peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(task_type="CAUSAL_LM", **options)))


def added(**changes):
    """A tiny Llama to which transformers itself has added a LoRA that changes it."""
    model = tiny_model("llama")
    model.add_adapter(peft.LoraConfig(**{"r": 4, "target_modules": LINEAR, **changes}))
    return moved(model)


MAKERS = {"PeftModel": lora, "add_adapter": added}


@pytest.fixture(params=MAKERS)
def adapted(request) -> nn.Module:
    return MAKERS[request.param]()


@pytest.fixture
def rollouts(tokenizer, input_ids):
    return of_ids(tokenizer, input_ids.tolist(), prompt=4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_inner_model_computes_the_same_as_the_peft_model(kind, input_ids):
    model = moved(peft.get_peft_model(tiny_model("llama"), KINDS[kind]))
    assert not torch.allclose(model(input_ids).logits, tiny_model("llama")(input_ids).logits)
    assert torch.equal(inside(model)(input_ids).logits, model(input_ids).logits)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[7, 8]),
        peft.PolyConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2, n_tasks=2),
    ],
    ids=lambda config: type(config).__name__,
)
def test_an_adapter_that_changes_more_than_modules_is_rejected(config, input_ids):
    model = peft.get_peft_model(tiny_model("llama").float(), config)
    with pytest.raises(InputError, match=r"adapter 'default' is .* layer by layer. Use one of.*LORA"):
        policy_logits(model, ONE, input_ids=input_ids)


def test_the_final_policy_is_the_adapted_models_own(adapted, input_ids):
    assert torch.equal(policy_logits(adapted, FINAL, input_ids=input_ids), adapted(input_ids).logits)


def test_every_hook_point_equals_that_of_the_merged_model(input_ids):
    model = lora()
    read = {point: policy_logits(model, point, input_ids=input_ids) for point in all_points(inside(model))}
    merged = model.merge_and_unload()
    for point, logits in read.items():
        assert torch.allclose(logits, policy_logits(merged, point, input_ids=input_ids), atol=1e-9), point


def test_hooks_visit_the_hidden_states_of_an_adapted_model(adapted, input_ids):
    seen = {}
    with hooked(adapted, [ONE], seen.__setitem__):
        adapted(input_ids)
    assert torch.equal(unembed(adapted, seen[ONE]), policy_logits(adapted, ONE, input_ids=input_ids))


@pytest.mark.parametrize("readout", ["raw", "norm"])
def test_as_policy_works_on_an_adapted_model(adapted, input_ids, readout):
    expected = policy_logits(adapted, ONE, readout, input_ids=input_ids)
    with as_policy(adapted, ONE, readout):
        assert torch.equal(adapted(input_ids).logits, expected)


def test_as_policy_on_the_inner_model_is_rejected_while_open(input_ids):
    model = lora()
    with as_policy(model, ONE), pytest.raises(InputError, match="already one of"), as_policy(inside(model), ONE):
        pass


def test_a_disabled_adapter_is_ignored(input_ids):
    model = lora()
    with model.disable_adapter():
        off = policy_logits(model, ONE, input_ids=input_ids)
    assert torch.equal(off, policy_logits(tiny_model("llama"), ONE, input_ids=input_ids))


def test_a_scan_measures_the_model_with_its_adapter(adapted, tokenizer, rollouts):
    found = scan(adapted, tokenizer, rollouts, readouts=("raw",), top_k=0)
    first = torch.tensor([rollouts[0].ids])
    logits = policy_logits(adapted, ONE, input_ids=first)[0, 3:-1]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    rows = found.policies.query("rollout == 0 and layer == 1")
    assert torch.allclose(torch.tensor(rows["resid_post.entropy"].to_numpy()).double(), entropy, atol=1e-4)


def test_responses_are_sampled_from_the_adapted_model(adapted, tokenizer):
    problems, options = [Problem(({"role": "user", "content": "7 + 5"},), "12")], {"temperature": 0.0, "chat": None}
    rollout = next(generate(adapted, tokenizer, problems, max_new_tokens=6, **options))[0]
    ids = torch.tensor([rollout.ids])
    likeliest = adapted(ids).logits[0, len(rollout.prompt_ids) - 1 : -1].argmax(-1)
    assert tuple(likeliest.tolist()) == rollout.response_ids


def test_dynamics_measure_the_adapted_model(rollouts):
    model = lora()
    found = measure(model, rollouts, ONE)
    expected = measure(model.merge_and_unload(), rollouts, ONE)
    assert torch.allclose(torch.tensor(found["entropy"]), torch.tensor(expected["entropy"]), atol=1e-4)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_fully_trained_unembedding_is_read(make, tokenizer, rollouts):
    model = make(modules_to_save=["lm_head"])
    ids = torch.tensor([rollouts[0].ids])
    assert not torch.equal(unembedding(model).weight, tiny_model("llama").lm_head.weight)
    assert torch.equal(policy_logits(model, FINAL, input_ids=ids), model(ids).logits)
    assert torch.allclose(scanned(model, tokenizer, rollouts[0]), entropies(model, rollouts[0]), atol=1e-4)


def test_disabling_the_adapter_reads_the_original_unembedding():
    model = lora(modules_to_save=["lm_head"])
    with model.disable_adapter():
        assert torch.equal(unembedding(model).weight, tiny_model("llama").lm_head.weight)


def test_an_adapter_on_the_unembedding_changes_the_policy(input_ids):
    model = lora(target_modules=["q_proj", "lm_head"])
    assert torch.equal(policy_logits(model, FINAL, input_ids=input_ids), model(input_ids).logits)


def test_a_scan_rejects_an_unmerged_adapter_on_the_unembedding(tokenizer, rollouts):
    with pytest.raises(InputError, match=r"unembedding has an adapter.*merge_adapter"):
        scan(lora(target_modules=["q_proj", "lm_head"]), tokenizer, rollouts)


def test_a_merged_adapter_on_the_unembedding_is_measured(tokenizer, rollouts):
    model = lora(target_modules=["q_proj", "lm_head"])
    model.merge_adapter()
    assert torch.allclose(scanned(model, tokenizer, rollouts[0]), entropies(model, rollouts[0]), atol=1e-4)


def test_the_trainer_trains_an_adapter_that_transformers_added(tmp_path, tokenizer):
    model = added().float()
    run = trainer(tmp_path, tokenizer, model, schedule=[f"{ONE}:2"], max_steps=4)
    before = weights(model)
    run.train()
    changed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora" in name and ".layers.2." not in name for name in changed)
