"""Random policies, and their numbers from all logits at once in float64."""

import torch
from torch.distributions import Categorical

from internal_policy.measure.transform import LogitTransform

SCALES = [1.0, 3.0, 30.0, 1_000.0, 10_000.0]
"""Standard deviations of logits: a raw residual stream reaches the last ones."""
TRANSFORMS = [LogitTransform(divisor=3.0), LogitTransform(cap=5.0), LogitTransform(divisor=3.0, cap=5.0)]


def states(points=4, positions=5, d_vocab=300, std=3.0, d_model=16, dtype=torch.float64, seed=0):
    """Hidden states, an unembedding and targets whose logits have the standard deviation `std`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(points, positions, d_model, dtype=dtype, generator=generator)
    weight = torch.randn(d_vocab, d_model, dtype=dtype, generator=generator) * std / d_model**0.5
    return hidden, weight, torch.randint(0, d_vocab, (positions,), generator=generator)


def reference(hidden, weight, targets, scale=None, top_k=5, transform=LogitTransform()):  # noqa: B008
    """The same numbers from all logits at once, in float64."""
    logits = (
        hidden.double() @ weight.double().T
    )  # in the order of the policy, but without the ties that a transform makes
    policy = Categorical(logits=transform(logits))
    final = Categorical(logits=transform(logits[:1]))
    aim = logits.gather(-1, targets.expand(len(hidden), -1).unsqueeze(-1))
    at_input_norm = torch.full(logits.shape[:2], torch.nan, dtype=torch.float64)
    if scale is not None:
        scaled = logits[1 : 1 + len(scale)] * scale.double().unsqueeze(-1)
        at_input_norm[1 : 1 + len(scale)] = Categorical(logits=transform(scaled)).entropy()
    top = policy.probs.topk(top_k)
    return {
        "entropy": policy.entropy(),
        "logprob": policy.log_prob(targets),
        "rank": (logits > aim).sum(-1) + 1,
        "kl": (final.probs * (final.logits - policy.logits)).sum(-1),  # kl_divergence gives inf where exp underflows
        "topk_ids": logits.topk(top_k).indices,
        "topk_probs": top.values,
        "entropy_at_input_norm": at_input_norm,
    }


def assert_close(found, expected, atol, rtol=0.0):
    """Assert that values are close; NaN equals NaN."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            found[name].double(),
            values.double(),
            atol=atol,
            rtol=rtol,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )
