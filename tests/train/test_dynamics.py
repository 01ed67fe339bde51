"""Layers are measured during training as in a scan."""

import math

import pandas as pd
import pytest
import torch
from conftest import random_rollout, read, tiny_model

from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import Readout, policy_logits
from internal_policy.scans.scan import scan
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train import dynamics


def rollouts() -> list[Rollout]:
    return [random_rollout(3, 4, seed=0), random_rollout(3, 7, seed=1)]


def policies(model, point, readout: Readout = "raw") -> torch.Tensor:
    """Log-probabilities at every response token, (11, d_vocab)."""
    read = [
        policy_logits(model, point, readout, input_ids=torch.tensor([r.ids]))[0, len(r.prompt_ids) - 1 : -1]
        for r in rollouts()
    ]
    return torch.cat(read).detach().log_softmax(-1)


@pytest.mark.parametrize("point", [HookPoint(0, "resid_post"), HookPoint(1, "attn_out"), HookPoint(1, "mlp_out")])
def test_kl_compares_the_watched_policy_with_later_layers_and_the_model(model, point):
    frame = dynamics.measure(model, rollouts(), point).set_index(["layer", "site"])
    watched = policies(model, point)
    later = [HookPoint(layer, "resid_post") for layer in range(point.layer, 3)]
    for other in [*(p for p in later if p != point), FINAL]:
        row = (3, "final") if other == FINAL else (other.layer, other.site)
        there = policies(model, other)
        expected = (watched.exp() * (watched - there)).sum(-1).mean()
        assert frame.loc[row, "kl"] == pytest.approx(expected.item(), rel=1e-5)
    assert frame["kl"].notna().sum() == len([p for p in later if p != point]) + 1


def test_with_the_norm_readout_kl_compares_normed_policies(llama):
    point, last = HookPoint(0, "resid_post"), HookPoint(2, "resid_post")
    frame = dynamics.measure(llama, rollouts(), point, "norm").set_index(["layer", "site"])
    watched, there = policies(llama, point, "norm"), policies(llama, last, "norm")
    expected = (watched.exp() * (watched - there)).sum(-1).mean()
    assert frame.loc[(2, "resid_post"), "kl"] == pytest.approx(expected.item(), rel=1e-5)
    assert frame.loc[(2, "resid_post"), "kl"] == pytest.approx(frame.loc[(3, "final"), "kl"], rel=1e-5)
    assert frame.loc[(0, "resid_post"), "entropy"] == pytest.approx(-(watched.exp() * watched).sum(-1).mean().item())


def test_cosine_compares_hidden_states(llama):
    points = [HookPoint(1, "resid_post"), HookPoint(2, "resid_post")]
    cosines = []
    for rollout in rollouts():
        seen = read(llama, points, torch.tensor([rollout.ids]))
        a, b = (seen[point][0, len(rollout.prompt_ids) - 1 : -1] for point in points)
        cosines.append(torch.cosine_similarity(a, b, dim=-1))
    frame = dynamics.measure(llama, rollouts(), points[0]).set_index(["layer", "site"])
    assert frame.loc[(2, "resid_post"), "cosine"] == pytest.approx(torch.cat(cosines).mean().item(), rel=1e-6)
    assert pd.isna(frame["cosine"].iloc[-1])  # after the final norm


def test_other_measures_equal_those_of_a_scan(llama, tokenizer):
    frame = dynamics.measure(llama, rollouts(), None).set_index(["layer", "site"])
    layers = scan(llama, tokenizer, rollouts(), readouts=("raw",)).layers
    for measure in dynamics.MEASURES:
        weighted = layers.assign(total=layers[measure] * layers["tokens"]).groupby(["layer", "site"])
        expected = weighted["total"].sum(min_count=1) / weighted["tokens"].sum()
        torch.testing.assert_close(
            torch.tensor(frame[measure].to_numpy(), dtype=torch.float64),
            torch.tensor(expected.reindex(frame.index).to_numpy(), dtype=torch.float64),
            equal_nan=True, rtol=1e-5, atol=1e-6,
        )  # fmt: skip
    assert frame["kl"].isna().all()


def test_perplexity_is_measured_on_the_models_own_policy(llama):
    frame = dynamics.measure(llama, rollouts(), HookPoint(0, "resid_post"))
    came = torch.tensor([token for rollout in rollouts() for token in rollout.response_ids])
    own = policies(llama, FINAL).gather(-1, came[:, None]).mean()
    assert dynamics.perplexity(frame) == pytest.approx(math.exp(-own.item()), rel=1e-5)


def test_measuring_keeps_a_model_in_training_mode():
    model = tiny_model("qwen3").train()
    before = torch.get_rng_state()
    dynamics.measure(model, rollouts(), HookPoint(0, "resid_post"))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
