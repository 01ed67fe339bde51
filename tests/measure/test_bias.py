"""The tiled numbers of policies whose unembedding has a bias agree with those from all logits at once in float64."""

import pytest
import torch
from torch.distributions import Categorical

from internal_policy.measure import kernel
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.transform import LogitTransform

TRANSFORMS = [LogitTransform(), LogitTransform(divisor=3.0, factor=0.5), LogitTransform(cap=5.0)]


def states(dtype=torch.float64):
    """Hidden states, an unembedding, its bias, targets and scales."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias, scale = (
        torch.randn(*shape, dtype=dtype, generator=generator) for shape in ((4, 5, 16), (300, 16), (300,), (2, 5))
    )
    return hidden, weight, 3 * bias, torch.randint(0, 300, (5,), generator=generator), scale.exp()


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernel, "TILE_ROWS", 8)
    monkeypatch.setattr(kernel, "TILE_VOCAB", 128)


@pytest.mark.parametrize("matmul", ["plain", "stacked", "fused"])  # the last two are for GPUs
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=str)
def test_every_number_includes_the_bias(transform, dtype, atol, matmul):
    hidden, weight, bias, targets, scale = states(dtype)
    found = Kernel(weight, transform, top_k=3, bias=bias, matmul=matmul).measure(hidden, targets, scale)
    raw = hidden.double() @ weight.double().T
    policy = Categorical(logits=transform(raw + bias.double()))
    aim = (raw + bias).gather(-1, targets.expand(4, -1).unsqueeze(-1))
    expected = {
        "entropy": policy.entropy(),
        "logprob": policy.log_prob(targets),
        "rank": (raw + bias > aim).sum(-1) + 1,
        "kl": (policy.probs[:1] * (policy.logits[:1] - policy.logits)).sum(-1),
        "topk_ids": (raw + bias).topk(3).indices,
        "topk_probs": policy.probs.topk(3).values,
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name].double(), values.double(), atol=atol, rtol=0, msg=name)
    # the state is scaled, and the bias isn't
    scaled = Categorical(logits=transform(raw[1:3] * scale.double().unsqueeze(-1) + bias)).entropy()
    torch.testing.assert_close(found["entropy_at_input_norm"][1:3].double(), scaled, atol=atol, rtol=0)


def test_a_bias_of_0_changes_nothing():
    hidden, weight, bias, targets, scale = states()
    without = Kernel(weight).measure(hidden, targets, scale)
    found = Kernel(weight, bias=torch.zeros_like(bias)).measure(hidden, targets, scale)
    for name, values in without.items():
        torch.testing.assert_close(found[name], values, atol=1e-12, rtol=0, equal_nan=True)


@pytest.mark.parametrize("matmul", ["plain", "stacked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copies_of_a_token_do_not_lower_its_rank(dtype, matmul):
    hidden, weight, bias, targets, _ = states()
    weight, bias = torch.cat([weight, weight]).to(dtype), torch.cat([bias, bias]).to(dtype)
    doubled = Kernel(weight, bias=bias, matmul=matmul).measure(hidden.to(dtype), targets)["rank"]
    once = Kernel(weight[:300], bias=bias[:300], matmul=matmul).measure(hidden.to(dtype), targets)["rank"]
    assert torch.equal(doubled, 2 * once - 1)


def test_a_hidden_state_of_0_has_the_policy_of_the_bias():
    hidden, weight, bias, targets, _ = states()
    found = Kernel(weight, bias=bias).measure(torch.zeros_like(hidden), targets)["entropy"]
    expected = Categorical(logits=bias).entropy().expand(4, 5)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
