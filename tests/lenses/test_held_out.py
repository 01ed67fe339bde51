"""Divergences of lenses on held-out rollouts, each against a computation of its own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_rollout

from internal_policy.errors import InputError
from internal_policy.lenses import fit, held_out, lens
from internal_policy.lenses.lens import FittedLens, Jacobian, Translator
from internal_policy.measure.sites import SITES
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import policy_logits

POINTS = fit.points_of(dict.fromkeys(range(3), SITES), ("resid_pre", "attn_out", "resid_post"))
TEXTS = [replace(random_rollout(4, length, seed), problem=f"{seed}") for seed, length in enumerate((5, 1, 9, 4, 7))]


def translators(seed: int, size: float = 0.1, points=POINTS) -> FittedLens:
    draw = torch.Generator().manual_seed(seed)
    at = {}
    for point in points:
        weight = size * torch.randn(32, 32, generator=draw, dtype=torch.float64)
        at[point] = Translator(weight, size * torch.randn(32, generator=draw, dtype=torch.float64))
    return FittedLens(at, 3)


def policies(model, text, point, readout: Any = "raw") -> torch.Tensor:
    """Log probabilities where the response tokens of a text are predicted."""
    with torch.no_grad():
        logits = policy_logits(model, point, readout, input_ids=torch.tensor([text.ids]))
    return logits[0, len(text.prompt_ids) - 1 : -1].log_softmax(-1)


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each row of log probabilities."""
    return (p.exp() * (p - q)).sum(-1)


def test_the_kl_of_every_readout_is_that_of_its_policies(llama):
    a, b = translators(0), translators(1)
    table = held_out.kl(held_out.measured(llama, TEXTS, {"tuned": a, "other": b}))
    found: Any = table.set_index(["layer", "site", "readout"])
    assert len(found) == len(POINTS) * 4
    readouts: dict[str, Any] = {"raw": "raw", "norm": "norm", "tuned": lens.of(a, llama), "other": lens.of(b, llama)}
    for point in POINTS:
        for name, readout in readouts.items():
            every = [divergence(policies(llama, t, FINAL), policies(llama, t, point, readout)) for t in TEXTS]
            row = found.loc[(point.layer, point.site, name)]
            assert row["mean"] == pytest.approx(torch.cat(every).mean().item(), rel=1e-5)
            assert row["low"] < row["mean"] < row["high"]


def test_the_gain_is_that_over_the_logit_lens(llama):
    layers = held_out.measured(llama, TEXTS, {"tuned": translators(0)})
    wide = held_out.kl(layers).pivot(index=["layer", "site"], columns="readout", values="mean")
    found = held_out.gain(layers, "tuned").set_index(["layer", "site"])
    expected: Any = (wide["norm"] - wide["tuned"]).loc[found.index]
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-6)
    assert [str(HookPoint(*row)) for row in found.index] == [str(point) for point in POINTS]
    assert (found["low"] < found["mean"]).all()


def test_a_lens_that_is_the_logit_lens_gains_nothing(llama):
    same = FittedLens({point: Jacobian(torch.eye(32, dtype=torch.float64)) for point in POINTS}, 3)
    found = held_out.gain(held_out.measured(llama, TEXTS, {"jacobian": same}), "jacobian")
    np.testing.assert_allclose(found[["mean", "low", "high"]], 0, atol=1e-6)


def test_the_divergence_between_two_lenses_is_that_of_their_policies_in_both_directions(llama):
    a, b = translators(0), translators(1)
    found: Any = held_out.between(llama, TEXTS, a, b).set_index(["layer", "site"])
    for point in POINTS:
        both = [[policies(llama, text, point, lens.of(one, llama)) for one in (a, b)] for text in TEXTS]
        every = torch.cat([(divergence(p, q) + divergence(q, p)) / 2 for p, q in both])
        row = found.loc[(point.layer, point.site)]
        assert row["mean"] == pytest.approx(every.mean().item(), rel=1e-6)
        assert row["low"] < row["mean"] < row["high"]


def test_a_lens_does_not_diverge_from_itself(llama):
    found = held_out.between(llama, TEXTS, translators(0), translators(0))
    assert (found[["mean", "low", "high"]] == 0).all(axis=None)


def test_a_lens_without_the_hook_points_of_the_first_is_rejected(llama):
    with pytest.raises(InputError, match=r"The lens was not fitted at 2\.attn_out"):
        held_out.measured(llama, TEXTS, {"tuned": translators(0), "other": translators(1, points=POINTS[:-1])})
    with pytest.raises(InputError, match=r"The lens was not fitted at 2\.attn_out"):
        held_out.between(llama, TEXTS, translators(0), translators(1, points=POINTS[:-1]))
