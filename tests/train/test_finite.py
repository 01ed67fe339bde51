"""Large ratios and gradients that aren't finite don't destroy a model."""

from itertools import pairwise
from typing import Any

import pandas as pd
import pytest
import torch
from trainer import Fixed, trainer, weights
from transformers import TrainerCallback

from internal_policy.errors import InputError
from internal_policy.train import finite
from internal_policy.train.callbacks import RunLogger, ScanSchedule

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def batch(run: Any, moved: float, advantage: float, mask: list[int]) -> dict[str, Any]:
    """A response of two tokens; the log-probability of the first has changed by `moved` nats."""
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        now = run._get_per_token_logps_and_entropies(run.model, ids, torch.ones_like(ids), 2)[0]
    return {
        "prompt_ids": ids[:, :2],
        "prompt_mask": torch.ones(1, 2, dtype=torch.int64),
        "completion_ids": ids[:, 2:],
        "completion_mask": torch.tensor([mask]),
        "advantages": torch.tensor([advantage]),
        "old_per_token_logps": now - torch.tensor([[moved, 0.0]]),
        "num_items_in_batch": torch.tensor(2),
    }


def gradient(run: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    run.model.zero_grad()
    run._compute_loss(run.model, inputs).backward()
    return {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss", ["grpo", "dapo", "sapo", "cispo", "vespo"])
@pytest.mark.parametrize("moved", [100.0, -100.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_log_probability_that_moved_by_100_nats_has_finite_gradients(tmp_path, tokenizer, loss, moved, advantage):
    run = trainer(tmp_path, tokenizer, loss_type=loss, importance_sampling_level="token", epsilon_high=5.0)
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    found = gradient(run, batch(run, moved, advantage, [1, 1]))
    assert found
    assert all(torch.isfinite(grad).all() for grad in found.values())


def test_a_clipped_token_has_no_gradient_however_far_it_moved(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, loss_type="dr_grpo")
    run.model.train()
    run.current_gradient_accumulation_steps = 1
    far, near = (gradient(run, batch(run, moved, 1.0, [1, 1])) for moved in (100.0, 1.0))
    assert any(grad.any() for grad in far.values())  # of the other token
    for name, grad in far.items():
        assert torch.equal(grad, near[name])


def test_log_probabilities_are_exact_up_to_20_nats_from_the_old_ones():
    now = torch.tensor([[-0.1, -3.7, -50.0, -0.1]], requires_grad=True)
    old = torch.tensor([[-0.3, -22.3, -0.1, -50.0]])
    found = finite.bounded(now, old)
    assert torch.equal(found[:, :2], now[:, :2])
    torch.testing.assert_close((found - old)[:, 2:], torch.tensor([[-20.0, 20.0]]))
    found.sum().backward()
    assert now.grad is not None
    assert now.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


class Broken(Fixed):
    """The loss isn't a number at some updates."""

    at: range = range(1, 2)

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        return loss * float("nan") if self.state.global_step in self.at else loss


class Weights(TrainerCallback):
    """The weights after each update."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **_):
        self.seen.append(weights(model))


@pytest.mark.parametrize("clip", [1.0, 0.0], ids=["clipping", "no clipping"])
def test_an_update_whose_gradient_is_not_finite_is_skipped_and_counted(tmp_path, tokenizer, clip):
    record, logger = Weights(), RunLogger(tmp_path, 2, (), ScanSchedule([], None, 0))
    run = trainer(
        tmp_path, tokenizer, kind=Broken, callbacks=[record, logger], max_steps=4, weight_decay=0.1, max_grad_norm=clip
    )
    run.train()
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairwise(record.seen)]
    assert same == [True, False, False]
    assert pd.read_parquet(tmp_path / "metrics.parquet")["skipped"].tolist() == [0.5, 0.0]


def test_training_stops_after_several_such_updates_in_a_row_and_keeps_the_checkpoint(tmp_path, tokenizer, monkeypatch):
    class Lost(Broken):
        at = range(3, 100)

    assert finite.PATIENCE == 10
    monkeypatch.setattr(finite, "PATIENCE", 3)
    run = trainer(tmp_path, tokenizer, kind=Lost, max_steps=40, save_strategy="steps", save_steps=2)
    said = r"3 updates in a row \(up to update 6\), so training stopped. The last checkpoint is .*/checkpoint-4\."
    with pytest.raises(InputError, match=said):
        run.train()
    assert all(torch.isfinite(weight).all() for weight in weights(run.model).values())
