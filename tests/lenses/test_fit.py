"""A lens is fitted to the model's own policy, measured on unseen texts, and doesn't change the model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import FEW, hook_count, random_rollout, tiny_model
from torch.nn.functional import kl_div

from internal_policy.errors import InputError
from internal_policy.lenses import fit, held_out, lens
from internal_policy.measure.sites import SITES
from internal_policy.models.families import layer_sites, sites_of
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import policy_logits, unembed

POINTS = fit.points_of(dict.fromkeys(range(3), SITES), fit.STREAM)


def rollouts(number, seed=0, problem="problem {}"):
    return [replace(random_rollout(4, 12, 1000 * seed + n), problem=problem.format(n)) for n in range(number)]


def flat(model):
    """`model` with a policy of higher entropy, like a language model's: a fit then needs fewer texts."""
    model.get_output_embeddings().weight.data.mul_(0.1)
    return model


def kl(model, texts, translators):
    return held_out.kl(held_out.measured(model, texts, {"tuned": translators}))


# the fit


def test_the_stream_gets_a_translator_at_the_embeddings_and_after_each_layer_but_the_last():
    assert [str(point) for point in POINTS] == ["0.resid_pre", "0.resid_post", "1.resid_post"]


def test_other_sites_get_a_translator_in_each_layer():
    points = fit.points_of(dict.fromkeys(range(2), SITES), ["attn_out"])
    assert points == [HookPoint(0, "attn_out"), HookPoint(1, "attn_out")]
    assert len(fit.points_of(dict.fromkeys(range(3), SITES), SITES)) == 18


@pytest.mark.parametrize(
    "family",
    [name if name in ("llama", "gemma2", "gpt2") else pytest.param(name, marks=pytest.mark.slow) for name in FEW],
)
def test_a_fitted_lens_is_closer_to_the_model_on_unseen_texts(family):
    model: Any = flat(tiny_model(family)).float()
    points = fit.points_of(layer_sites(model.config), sites_of(model.config))
    translators = fit.fit(model, rollouts(48), points, steps=60, batch_tokens=128)
    found = kl(model, rollouts(12, seed=1), translators)
    wide = found.pivot(index=["layer", "site"], columns="readout", values="mean")
    assert len(wide) == len(points)
    assert (wide["tuned"] < wide["norm"]).all()
    assert wide["tuned"].mean() < 0.8 * wide["norm"].mean()


def test_an_untrained_lens_is_the_norm_readout(llama):
    translators = fit.fit(llama, rollouts(4), POINTS, steps=1, learning_rate=1e-12)
    state = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for point in POINTS:
        mapped = unembed(llama, state, lens.of(translators, llama), point)
        torch.testing.assert_close(mapped, unembed(llama, state, "norm"), rtol=0, atol=1e-9)


def test_the_first_step_follows_the_negative_gradient_of_the_kl(llama):
    texts, point = rollouts(2), HookPoint(0, "resid_post")
    translators = fit.fit(
        llama, texts, [point], steps=1, learning_rate=0.32, batch_tokens=24
    )  # 2 responses of 12 tokens
    weight = torch.zeros(32, 32, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([one.ids for one in texts])
    with torch.no_grad():
        final = policy_logits(llama, FINAL, input_ids=ids)[:, 3:-1].flatten(0, 1).log_softmax(-1)
        state = fit.states(llama, texts, [point])[0]
        own = fit.states(llama, texts, [FINAL])[0]
        final_too = unembed(llama, own).log_softmax(-1)
    torch.testing.assert_close(final.sort(0).values, final_too.sort(0).values)
    logits = unembed(llama, state + state @ weight.T, "norm").log_softmax(-1)
    (gradient,) = torch.autograd.grad(kl_div(logits, final_too, reduction="batchmean", log_target=True), weight)
    # Adam's first step is its rate, 0.32 / 32, against the sign of the gradient
    clear = gradient.abs() > 1e-4
    assert clear.double().mean() > 0.9
    torch.testing.assert_close(translators.at[point][0][clear], -0.01 * gradient.sign()[clear], rtol=1e-3, atol=0)


def test_the_seed_determines_the_translators(llama):
    one, same, other = (
        fit.fit(llama, rollouts(6), POINTS, steps=5, batch_tokens=16, seed=seed).at[POINTS[1]][0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_lens_of_all_rollouts_is_the_same_with_parts_beside_it(llama):
    texts, options = rollouts(6), dict[str, Any](steps=5, batch_tokens=16)
    alone = fit.fit(llama, texts, POINTS, **options)
    beside = fit.fit_parts(llama, texts, POINTS, [range(6), [0, 2], [1]], **options)[0]
    assert all(torch.equal(a, b) for p in POINTS for a, b in zip(alone.at[p], beside.at[p], strict=True))


def test_a_part_learns_only_from_its_own_rollouts(llama):
    mine, others = rollouts(3), rollouts(3, seed=1)
    options = dict[str, Any](steps=4, batch_tokens=72)  # each step has all tokens of the 6 responses
    one, other = (
        fit.fit_parts(llama, mine + texts, POINTS, [range(3)], **options)[0] for texts in (others, rollouts(3, seed=2))
    )
    alone = fit.fit(llama, mine, POINTS, steps=4, batch_tokens=36)
    for point in POINTS:
        torch.testing.assert_close(one.at[point], other.at[point], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(one.at[point], alone.at[point], rtol=1e-6, atol=1e-9)


def test_hidden_states_are_kept_rollout_by_rollout(llama, monkeypatch):
    texts = [*rollouts(3), random_rollout(2, 5, 7)]
    whole = fit.states(llama, texts, POINTS)
    alone = torch.cat([fit.states(llama, [one], POINTS) for one in texts], 1)
    torch.testing.assert_close(whole, alone)
    monkeypatch.setattr("internal_policy.scans.blocks.STATE_BYTES", 1)  # a position of every text at a time
    torch.testing.assert_close(fit.states(llama, texts, POINTS), whole)


def test_fitting_does_not_change_the_model(llama):
    llama.train()
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    hooks = hook_count(llama)
    translators = fit.fit(llama, rollouts(4), POINTS, steps=3, batch_tokens=16)
    kl(llama, rollouts(2, seed=1), translators)
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in llama.parameters())
    assert all(not tensor.requires_grad for one in translators.at.values() for tensor in one)
    assert hook_count(llama) == hooks
    assert llama.training


def test_a_bfloat16_model_has_translators_in_float32():
    model: Any = flat(tiny_model("qwen3")).bfloat16()
    translators = fit.fit(model, rollouts(24), POINTS, steps=40, batch_tokens=64)
    assert {tensor.dtype for one in translators.at.values() for tensor in one} == {torch.float32}
    wide = kl(model, rollouts(8, seed=1), translators).pivot(index=["layer", "site"], columns="readout", values="mean")
    assert (wide["tuned"] < wide["norm"]).all()


def test_every_step_reports_its_progress(llama):
    told = []
    fit.fit(llama, rollouts(2), POINTS, steps=3, batch_tokens=10, advance=lambda *step: told.append(step))
    assert told == [(1, 10)] * 3


# the held-out part


def test_no_problem_is_both_fitted_and_held_out():
    texts = [replace(one, sample=sample) for one in rollouts(10) for sample in range(3)]
    fitted, held = fit.apart(texts, 0.2, seed=0)
    assert (len(fitted), len(held)) == (24, 6)
    assert not {one.problem for one in fitted} & {one.problem for one in held}
    assert {one.problem for one in held} != {one.problem for one in fit.apart(texts, 0.2, seed=1)[1]}


@pytest.mark.parametrize(("share", "number"), [(0.001, 1), (0.5, 5), (0.999, 9)])
def test_both_the_fitted_and_the_held_out_part_have_a_problem(share, number):
    fitted, held = fit.apart(rollouts(10), share, seed=0)
    assert (len(fitted), len(held)) == (10 - number, number)


def test_the_halves_share_no_problem():
    texts = [replace(one, sample=sample) for one in rollouts(5) for sample in range(3)]
    one, other = fit.halves(texts, seed=0)
    assert sorted(one + other) == [*range(15)]
    assert {len(one), len(other)} == {9, 6}
    assert not {texts[n].problem for n in one} & {texts[n].problem for n in other}


def test_a_single_problem_has_no_halves():
    assert fit.halves([replace(one, problem="the same") for one in rollouts(3)], seed=0) == []


def test_texts_without_a_problem_count_as_different_problems():
    assert len(fit.apart(rollouts(10, problem=""), 0.2, seed=0)[1]) == 2


def test_a_single_problem_is_rejected():
    with pytest.raises(InputError, match=r"fitted on some problems and measured on others\. Give 2 or more"):
        fit.apart([replace(one, problem="the same") for one in rollouts(3)], 0.2, seed=0)


def test_the_reported_kl_equals_that_of_the_policies(llama):
    translators = fit.fit(llama, rollouts(4), POINTS, steps=2, batch_tokens=16)
    texts = rollouts(3, seed=1)
    found = kl(llama, texts, translators).set_index(["layer", "site", "readout"])["mean"]
    ids = torch.tensor([one.ids for one in texts])
    readouts: dict[str, Any] = {"raw": "raw", "norm": "norm", "tuned": lens.of(translators, llama)}
    for point in POINTS:
        for name, readout in readouts.items():
            with torch.no_grad():
                final = policy_logits(llama, FINAL, input_ids=ids)[:, 3:-1].log_softmax(-1)
                mine = policy_logits(llama, point, readout, input_ids=ids)[:, 3:-1].log_softmax(-1)
            expected = kl_div(mine.flatten(0, 1), final.flatten(0, 1), reduction="batchmean", log_target=True)
            assert found[point.layer, point.site, name] == pytest.approx(expected.item(), rel=1e-5)


# errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps is 0; it must be above 0"),
        ({"batch_tokens": -1}, "batch-tokens is -1; it must be above 0"),
        ({"learning_rate": 0.0}, "learning-rate is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "learning-rate is nan; it must be above 0"),
        ({"learning_rate": 1e38, "steps": 3}, "became infinite. Use a learning rate lower than 1e.38"),
    ],
)
def test_an_invalid_option_gets_a_one_sentence_error(llama, options, said):
    with pytest.raises(InputError, match=said):
        fit.fit(llama.float(), rollouts(2), POINTS, **options)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_held_out_share_must_lie_between_0_and_1(share):
    with pytest.raises(InputError, match=r"held-out is .*; it must be above 0 and below 1"):
        fit.check_options(1, 1.0, 1, share)


def test_an_empty_list_of_hook_points_is_rejected(llama):
    with pytest.raises(InputError, match="There is no hook point to fit"):
        fit.fit(llama, rollouts(2), fit.points_of({0: SITES}, ["resid_post"]))


def test_an_empty_list_of_rollouts_is_rejected(llama):
    with pytest.raises(InputError, match="There are no response tokens to fit on"):
        fit.fit(llama, [], POINTS)


def test_a_fit_too_large_for_memory_is_rejected_before_reading(llama, monkeypatch):
    monkeypatch.setattr(fit, "states", None)
    memory = type("memory", (), {"available": 1000})
    monkeypatch.setattr(fit.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(
        InputError, match=r"3 hook points and their hidden states at 24 tokens need 0.0 GB, but only 0.0 GB is f"
    ):
        fit.fit(llama, rollouts(2), POINTS)
