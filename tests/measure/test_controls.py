"""Null and scaled states are what they are said to be, and depend on the token alone."""

import math

import pytest
import torch
from policies import states
from torch.distributions import Categorical

from internal_policy.measure.controls import DIRECTIONS, OF_STATES, Controls, of_kernel
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.metrics import CONTROLS, KNOWN, entropy
from internal_policy.measure.transform import LogitTransform


def controls(weight, **options):
    return Controls(Kernel(weight, **options), OF_STATES)


def test_a_kernel_measures_the_rest_and_the_logit_scale_that_they_need():
    assert {*of_kernel(KNOWN)} == {*KNOWN} - {*OF_STATES}
    assert of_kernel(["entropy", "entropy_at_input_scale"]) == ("entropy", "logit_scale")
    assert of_kernel(["entropy_random"]) == ()
    assert {*OF_STATES} < {*CONTROLS}


def test_a_shuffled_state_is_an_unembedding_with_shuffled_columns():
    hidden, weight, targets = states()
    found = controls(weight)
    order = found._order
    assert sorted(order.tolist()) == list(range(16))
    assert order.tolist() != list(range(16))
    shuffled = found.shuffled(hidden, targets)
    assert torch.equal(shuffled.norm(dim=-1), hidden[..., order].norm(dim=-1))
    columns = torch.empty_like(weight)
    columns[:, order] = weight
    torch.testing.assert_close(shuffled @ weight.T, hidden @ columns.T)


def test_three_tokens_by_hand():
    # of three coordinates, the second and third swap or all move; the entropies of all orders are known
    weight, hidden = torch.eye(3).double(), torch.tensor([[[3.0, 1.0, 0.0]]]).double()
    found = controls(weight)
    targets = torch.tensor([2])
    e = [math.exp(x) for x in (3, 1, 0)]
    by_hand = -sum(x / sum(e) * math.log(x / sum(e)) for x in e)
    # an identity has no preferred coordinates: shuffling them changes the tokens, and not the entropy
    assert found.entropy(found.shuffled(hidden, targets), targets).item() == pytest.approx(by_hand)
    # a random state has the length of (3, 1, 0)
    random = found.random(hidden, targets)
    assert random.norm().item() == pytest.approx(10**0.5)
    assert torch.equal(found.entropy(random, targets), entropy(random @ weight.T))
    # logits (2, 0, 0) are brought to the scale of (4, 4, 0), which is twice as large
    hidden = torch.tensor([[[1.0, 0, 0]], [[2.0, 0, 0]], [[4.0, 4, 0]]]).double()
    found = controls(weight, inputs=[2])
    logit_scale = (hidden @ weight.T).std(-1, correction=0)
    scaled = found.at_input_scale(hidden, targets, logit_scale)
    e = [math.exp(4), 1, 1]
    assert scaled[1].item() == pytest.approx(-sum(x / sum(e) * math.log(x / sum(e)) for x in e))
    assert scaled[[0, 2]].isnan().all()


def test_random_directions_depend_on_the_token_that_came_next_alone():
    hidden, weight, _ = states(positions=3)
    targets = torch.tensor([5, 5 + DIRECTIONS, 7])
    found = controls(weight).random(hidden, targets)
    torch.testing.assert_close(found.norm(dim=-1), hidden.norm(dim=-1))
    unit = torch.nn.functional.normalize(found, dim=-1)
    torch.testing.assert_close(unit[0, 0], unit[3, 1])  # of another hook point and position
    assert torch.cosine_similarity(unit[0, 0], unit[0, 2], dim=0) < 0.99
    alone = controls(weight).random(hidden[2:, 2:], targets[2:])
    assert torch.equal(alone, found[2:, 2:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_null_states_keep_the_dtype_of_the_hidden_states(dtype):
    hidden, weight, targets = states(dtype=dtype)
    found = controls(weight)
    for null in found.nulls.values():
        made = null(hidden, targets)
        assert made.dtype == dtype
        lengths = made.double().norm(dim=-1) / hidden.double().norm(dim=-1)
        assert (lengths - 1).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(divisor=3.0), LogitTransform(cap=5.0)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_the_state_is_multiplied_by_the_ratio_of_the_logit_scales(transform, biased):
    hidden, weight, targets = states(points=5)
    bias = torch.linspace(-2, 2, len(weight), dtype=torch.float64) if biased else None
    found = controls(weight, transform=transform, bias=bias, inputs=[3, 4])

    def logits(states):
        return transform(states @ weight.T + (0 if bias is None else bias))

    logit_scale = logits(hidden).std(-1, correction=0)
    scaled = logits(hidden[1:3] * (logit_scale[3:5] / logit_scale[1:3]).unsqueeze(-1))
    at_input = found.at_input_scale(hidden, targets, logit_scale)
    torch.testing.assert_close(at_input[1:3], Categorical(logits=scaled).entropy(), atol=1e-10, rtol=0)
    exact = torch.allclose(scaled.std(-1, correction=0), logit_scale[3:5])
    assert exact == (transform.cap is None and not biased)  # a bias isn't scaled, and a cap bends


def test_an_output_without_a_logit_scale_has_the_entropy_of_a_uniform_policy():
    hidden, weight, targets = states(points=3)
    hidden[1] = 0
    found = controls(weight, inputs=[2]).at_input_scale(hidden, targets, (hidden @ weight.T).std(-1, correction=0))
    torch.testing.assert_close(found[1], torch.full_like(found[1], math.log(300)))
