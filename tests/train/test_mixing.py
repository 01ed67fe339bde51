"""A phase with a weight trains an internal policy and the whole one at once."""

import pytest
import torch
from conftest import tiny_model
from trainer import Fixed, trainer, weights

from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import policy_logits

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


class Gradients(Fixed):
    """Keeps the gradient of the first update, and the passes that it was made of."""

    def _compute_loss(self, model, inputs):
        if self.state.global_step == 0:
            seen.append({name: value.clone() for name, value in inputs.items()})
        return super()._compute_loss(model, inputs)

    def _get_grad_norm(self, model, grad_norm=None):
        if not found:
            found.update({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
        return super()._get_grad_norm(model, grad_norm)


seen: list = []
found: dict[str, torch.Tensor] = {}


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_is_the_weighted_sum_of_both_policies_gradients(tmp_path, tokenizer, tied):
    seen.clear()
    found.clear()
    model = tiny_model("llama", tie_word_embeddings=tied)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer(tmp_path, tokenizer, model, kind=Gradients, schedule=["1.resid_post*0.3:1"], max_steps=2,
            max_grad_norm=0.0).train()  # fmt: skip
    model.load_state_dict(before)
    model.zero_grad()
    for rows in seen:
        ids, mask = (torch.cat([rows[f"prompt_{kind}"], rows[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
        answer = rows["completion_mask"]
        keep = answer.shape[1]
        for weight, point in ((0.3, HookPoint(1, "resid_post")), (0.7, FINAL)):
            logits = policy_logits(model, point, input_ids=ids, attention_mask=mask)[:, -keep - 1 : -1]
            own = logits.log_softmax(-1).gather(-1, ids[:, -keep:, None]).squeeze(-1)
            means = (own * answer).sum(1) / answer.sum(1).clamp(min=1)  # at the first update all ratios are 1
            (-weight * (means * rows["advantages"]).mean() / len(seen)).backward()
    expected = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4)


def test_a_weight_of_one_is_the_internal_policy_alone_and_zero_the_whole_one(tmp_path, tokenizer):
    trained = {}
    for schedule in ("1.resid_post:2", "1.resid_post*1:2", "1.resid_post*0:2", "final:2"):
        run = trainer(tmp_path, tokenizer, kind=Fixed, schedule=[schedule], max_steps=4)
        run.train()
        trained[schedule] = weights(run.model)
    for one, other in (("1.resid_post:2", "1.resid_post*1:2"), ("1.resid_post*0:2", "final:2")):
        for name, weight in trained[one].items():
            torch.testing.assert_close(weight, trained[other][name], atol=1e-7, rtol=0)
    internal, whole = trained["1.resid_post:2"], trained["final:2"]
    assert any((weight - whole[name]).abs().max() > 1e-4 for name, weight in internal.items())


@pytest.mark.parametrize("method", ["rloo", pytest.param("reinforce++", marks=pytest.mark.slow)])
def test_a_ramp_logs_the_internal_policy_and_resumes(tmp_path, tokenizer, method):
    options = {"kind": Fixed, "method": method, "schedule": ["1.resid_post@norm*1-0.5:3"], "max_steps": 8}
    whole = trainer(tmp_path, tokenizer, **options, save_strategy="steps", save_steps=4)
    whole.train()
    logs = [row for row in whole.state.log_history if "grad_norm" in row]
    assert ["internal/entropy" in row for row in logs] == [True] * 6 + [False] * 2
    resumed = trainer(tmp_path, tokenizer, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    after = weights(resumed.model)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(whole.model).items())
