"""Rényi entropies and the logit scale equal their definitions, whatever multiplies."""

import math

import pytest
import torch
from policies import SCALES, TRANSFORMS, states

from internal_policy.measure import kernel, native
from internal_policy.measure.kernel import Kernel
from internal_policy.measure.spread import SPREAD
from internal_policy.measure.transform import LogitTransform

MATMULS = ["plain", "stacked", *(["native"] if native.is_built() else [])]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernel, "TILE_ROWS", 8)
    monkeypatch.setattr(kernel, "TILE_VOCAB", 128)
    monkeypatch.setattr(native, "cache_bytes", lambda: 2**14)


def definition(logits):
    """The numbers of SPREAD from their definitions, in float64."""
    z = logits.double()

    def renyi(a):
        return (torch.logsumexp(a * z, -1) - a * torch.logsumexp(z, -1)) / (1 - a)

    return {"renyi_half": renyi(0.5), "renyi_2": renyi(2.0), "logit_scale": z.std(-1, correction=0)}


def measure(hidden, weight, matmul="plain", **options):
    targets = torch.zeros(hidden.shape[1], dtype=torch.int64)
    return Kernel(weight, matmul=matmul, measures=SPREAD, **options).measure(hidden, targets)


def of_three(*logits, **options):
    """The numbers of a policy over three tokens with these logits."""
    weight = torch.tensor(logits, dtype=torch.float64)[:, None]
    return {name: values.item() for name, values in measure(torch.ones(1, 1, 1).double(), weight, **options).items()}


def test_three_tokens_by_hand():
    # the probabilities are 1/2, 1/4 and 1/4; their square roots add up to 1.7071, their squares to 3/8
    found = of_three(math.log(2), 0.0, 0.0)
    assert found["renyi_half"] == pytest.approx(2 * math.log(0.5**0.5 + 1))
    assert found["renyi_2"] == pytest.approx(math.log(8 / 3))
    # the logits' mean is ln 2 / 3, and their distances from it are 2, -1 and -1 times that
    assert found["logit_scale"] == pytest.approx(math.log(2) / 3 * 2**0.5)


def test_a_bias_and_a_logit_transform_count_by_hand():
    bias, transform = torch.tensor([0.0, 2.0, 1.0]).double(), LogitTransform(divisor=2.0, cap=3.0)
    found = of_three(4.0, 0.0, 1.0, bias=bias, transform=transform)
    expected = definition(torch.tanh(torch.tensor([2.0, 1.0, 1.0]).double() / 3) * 3)
    assert found == {name: pytest.approx(value.item()) for name, value in expected.items()}


def test_equal_logits_have_the_same_entropy_of_every_order():
    found = of_three(7.0, 7.0, 7.0)
    assert found == {**dict.fromkeys(SPREAD, pytest.approx(math.log(3))), "logit_scale": 0.0}


@pytest.mark.parametrize("transform", [LogitTransform(), *TRANSFORMS], ids=str)
@pytest.mark.parametrize("matmul", ["plain", "stacked"])
def test_float64_agrees_with_the_definition(matmul, transform):
    hidden, weight, _ = states()
    bias = torch.linspace(-2, 2, len(weight), dtype=torch.float64)
    for added in (None, bias):
        found = measure(hidden, weight, matmul, transform=transform, bias=added)
        expected = definition(transform(hidden @ weight.T + (0 if added is None else added)))
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, atol=1e-11, rtol=1e-11, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("std", SCALES)
@pytest.mark.parametrize("matmul", MATMULS)
def test_float32_is_exact_for_every_scale_and_checkpoint(matmul, std, dtype):
    hidden, weight, _ = states(std=std, d_vocab=700)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    found = measure(hidden, weight, matmul)
    for name, values in definition(hidden.double() @ weight.double().T).items():
        torch.testing.assert_close(found[name].double(), values, atol=2e-3 if std > 100 else 3e-5, rtol=2e-6, msg=name)


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(cap=30.0)], ids=str)
@pytest.mark.parametrize("matmul", MATMULS)
def test_what_all_rows_of_the_unembedding_share_does_not_change_the_logit_scale(matmul, transform):
    hidden, weight, _ = states(dtype=torch.float32)
    before = measure(hidden, weight, matmul)["logit_scale"]
    shifted = measure(hidden, weight + 5, matmul)["logit_scale"]
    assert transform.cap is not None or torch.allclose(before, shifted, rtol=1e-5)
    capped = [measure(hidden, w, matmul, transform=transform)["logit_scale"] for w in (weight, weight + 5)]
    assert torch.allclose(*capped, rtol=1e-5) == (transform.cap is None)  # a cap isn't blind to it


@pytest.mark.parametrize("matmul", MATMULS)
def test_the_orders_fall_and_the_entropy_lies_between(matmul):
    hidden, weight, targets = states(dtype=torch.float32)
    found = Kernel(weight, matmul=matmul, measures=("entropy", *SPREAD)).measure(hidden, targets)
    assert (found["renyi_half"] > found["entropy"]).all()
    assert (found["entropy"] > found["renyi_2"]).all()


@pytest.mark.parametrize("matmul", MATMULS)
def test_other_numbers_do_not_change_with_them(matmul):
    hidden, weight, targets = states(dtype=torch.float32)
    without = Kernel(weight, matmul=matmul).measure(hidden, targets)
    found = Kernel(weight, matmul=matmul, measures=(*kernel.MEASURES, *SPREAD)).measure(hidden, targets)
    for name, values in without.items():
        torch.testing.assert_close(found[name], values, atol=2e-6, rtol=2e-6, equal_nan=True, msg=name)


@pytest.mark.parametrize("matmul", MATMULS)
def test_a_nan_state_has_nan_numbers(matmul):
    hidden, weight, _ = states(dtype=torch.float32)
    hidden[1, 2] = torch.nan
    found = measure(hidden, weight, matmul)
    for name in SPREAD:
        assert found[name].isnan().nonzero().tolist() == [[1, 2]], name


@pytest.mark.skipif("native" not in MATMULS, reason="there is no compiler")
def test_slices_of_the_vocabulary_do_not_change_them(monkeypatch):
    hidden, weight, _ = states(dtype=torch.bfloat16, d_vocab=3000)
    whole = measure(hidden, weight, "native")
    monkeypatch.setattr(native, "SLICE", 1)
    for name, values in measure(hidden, weight, "native").items():
        torch.testing.assert_close(values, whole[name], atol=1e-5, rtol=1e-6, msg=name)
