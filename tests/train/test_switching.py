"""An internal phase ends when its gradient stops pointing the whole policy's way."""

import pytest
import torch
from conftest import tiny_model
from trainer import PROMPTS, Fixed, trainer, weights

from internal_policy.errors import InputError
from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.models.policy import policy_logits

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
SCHEDULE = ["0.resid_post:2", "1.resid_post:2"]


def test_the_alignment_is_the_cosine_of_both_policies_gradients(tmp_path, tokenizer):
    model = tiny_model("llama", tie_word_embeddings=False)
    run = trainer(tmp_path, tokenizer, model, kind=Fixed, schedule=["1.resid_post:4"], switch_below=-1.0)
    model.train()
    batch = run._generate_and_score_completions([{"prompt": PROMPTS[n // 2]} for n in range(8)])
    ids, mask = (torch.cat([batch[f"prompt_{kind}"], batch[f"completion_{kind}"]], 1) for kind in ("ids", "mask"))
    answer = batch["completion_mask"]
    keep, gradients = answer.shape[1], []
    for point in (HookPoint(1, "resid_post"), FINAL):
        logits = policy_logits(model, point, input_ids=ids, attention_mask=mask)[:, -keep - 1 : -1]
        own = logits.log_softmax(-1).gather(-1, ids[:, -keep:, None]).squeeze(-1)
        value = ((own * answer).sum(1) / answer.sum(1) * batch["advantages"]).sum()
        found = torch.autograd.grad(value, [*model.parameters()], materialize_grads=True)
        gradients.append(torch.cat([each.flatten() for each in found]))
    expected = float(torch.cosine_similarity(*gradients, dim=0))
    assert run._metrics["train"]["internal/alignment"] == [pytest.approx(expected, abs=1e-4)]


def trained(folder, tokenizer, **options):
    run = trainer(folder, tokenizer, kind=Fixed, schedule=SCHEDULE, max_steps=10, **options)
    run.train()
    logs = [row for row in run.state.log_history if "reward" in row]  # one a step
    return run, ["internal/entropy" in row for row in logs], ["internal/alignment" in row for row in logs]


def test_a_phase_whose_alignment_is_never_too_small_has_its_full_length(tmp_path, tokenizer):
    _, internal, measured = trained(tmp_path, tokenizer, switch_below=-1.0, switch_every=2)
    assert internal == [True] * 4 + [False]
    assert measured == [True, False, True, False, False]


def test_a_phase_ends_after_the_step_in_which_alignment_is_too_small_and_resumes(tmp_path, tokenizer):
    options = {"switch_below": 1.0, "switch_every": 2}
    whole, internal, measured = trained(tmp_path, tokenizer, **options, save_strategy="steps", save_steps=2)
    assert internal == measured == [True] * 2 + [False] * 3
    resumed = trainer(tmp_path, tokenizer, kind=Fixed, schedule=SCHEDULE, max_steps=10, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    after = weights(resumed.model)
    assert all(torch.equal(weight, after[name]) for name, weight in weights(whole.model).items())


def test_switching_needs_an_internal_phase(tmp_path, tokenizer):
    with pytest.raises(InputError, match="switch_below ends an internal phase, but the schedule has none"):
        trainer(tmp_path, tokenizer, switch_below=0.1)
