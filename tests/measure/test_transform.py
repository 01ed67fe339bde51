"""Logit transforms agree with the models of transformers."""

import pytest
import torch
from conftest import tiny_model

from internal_policy.measure.transform import LogitTransform

LOGITS = torch.linspace(-60, 60, 301, dtype=torch.float64).view(7, 43)
TRANSFORMS = [LogitTransform(divisor=3.0), LogitTransform(cap=5.0), LogitTransform(divisor=3.0, cap=5.0)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "option", "transform"),
    [
        ("granite", {"logits_scaling": 3.0}, LogitTransform(divisor=3.0)),
        ("gemma2", {"final_logit_softcapping": 3.0}, LogitTransform(cap=3.0)),
        ("gemma3_text", {"final_logit_softcapping": 3.0}, LogitTransform(cap=3.0)),
    ],
)
def test_a_transform_gives_the_models_own_logits_bit_for_bit(family, option, transform, dtype, input_ids):
    model = tiny_model(family, **option).to(dtype)
    logits = model.lm_head(model.get_decoder()(input_ids).last_hidden_state)
    assert torch.equal(transform(logits), model(input_ids).logits)
    assert not torch.equal(logits, model(input_ids).logits)  # the model does have a transform


def test_a_transform_divides_first():
    # 6 / 3 = 2, and 2 under a cap of 2 is 2 tanh 1
    found = LogitTransform(divisor=3.0, cap=2.0)(torch.tensor([6.0], dtype=torch.float64))
    torch.testing.assert_close(found, 2 * torch.tensor([1.0], dtype=torch.float64).tanh())


def test_the_default_transform_leaves_the_logits_unchanged():
    logits = LOGITS.clone()
    assert LogitTransform()(logits) is logits
    assert LogitTransform().overwrite(logits) is logits
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_overwrite_gives_the_same_result_in_place(transform):
    logits = LOGITS.clone()
    assert transform.overwrite(logits) is logits
    assert torch.equal(logits, transform(LOGITS))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_a_transform_keeps_the_order(transform):
    assert transform(LOGITS.flatten()).diff().min() >= 0


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_gradients_flow_through_a_transform(transform):
    assert torch.autograd.gradcheck(transform, LOGITS[3:4, :9].clone().requires_grad_())
