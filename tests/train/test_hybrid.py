"""Training a model whose layers have attention or an FFN, but not both."""

import pytest
import torch
from conftest import random_rollout, tiny_model
from hybrids import hybrid
from trainer import trainer

from internal_policy.errors import InputError
from internal_policy.look import runs
from internal_policy.models.hooks import HookPoint
from internal_policy.train import dynamics, run
from internal_policy.train.configuration import BuPOConfig

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_the_layers_with_an_ffn_are_scanned_for_the_target(monkeypatch, tokenizer):
    found = run.suggested(hybrid(monkeypatch), tokenizer, [random_rollout(seed=seed) for seed in range(6)])
    assert {layer for _, first, last in found["spans"] for layer in range(first, last + 1)} == {1, 3}


def test_a_model_without_an_ffn_has_no_default_target(monkeypatch, tokenizer):
    model = hybrid(monkeypatch, ("attention", "attention"))
    with pytest.raises(InputError, match=r"No layer of this model has an FFN, .* Choose one with --layer\."):
        run.suggested(model, tokenizer, [random_rollout()])


def test_dynamics_have_rows_for_the_sites_of_each_layer(monkeypatch):
    frame = dynamics.measure(hybrid(monkeypatch), [random_rollout()], HookPoint(1, "mlp_out"))
    assert sorted(frame.loc[frame["site"] == "mlp_out", "layer"]) == [1, 3]
    assert frame["entropy"].notna().all()
    changed = runs.with_changes(frame.assign(step=0))
    assert sorted(changed.loc[(changed["site"] == "attn_out") & changed["change"].notna(), "layer"]) == [0, 2]


def test_a_hook_point_that_the_layer_lacks_is_refused_before_training(monkeypatch, tokenizer, tmp_path):
    model = hybrid(monkeypatch)
    why = r"Layer 0 of llama has no mlp_out because a layer has either attention or an FFN\. Its sites are"
    with pytest.raises(InputError, match=why):
        trainer(tmp_path, tokenizer, model, schedule=["0.mlp_out:1"])
    config = BuPOConfig(output_dir=str(tmp_path), use_cpu=True, schedule=["0.mlp_out:1"])
    with pytest.raises(InputError, match=why):
        run.check(model.config, tokenizer, [], None, config)


def test_a_family_that_padding_changes_is_refused_before_training(tokenizer, tmp_path):
    model = tiny_model("rwkv")
    why = "rwkv can't be trained: training pads prompts to one length"
    with pytest.raises(InputError, match=why):
        trainer(tmp_path, tokenizer, model)
    config = BuPOConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(InputError, match=why):
        run.check(model.config, tokenizer, [], None, config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "point"), [("nemotron_h", "1.mlp_out"), ("lfm2", "1.attn_out"), ("jamba", "1.resid_post")]
)
def test_a_policy_of_a_hybrid_is_trained(tokenizer, tmp_path, name, point):
    model = tiny_model(name).float()
    before = {path: weight.detach().clone() for path, weight in model.named_parameters()}
    trainer(tmp_path, tokenizer, model, max_steps=4, learning_rate=1e-4, schedule=[f"{point}:2"]).train()
    changed = {path for path, weight in model.named_parameters() if not torch.equal(weight, before[path])}
    assert any(".layers.0." in path for path in changed)
    assert not any(".layers.2." in path for path in changed)
