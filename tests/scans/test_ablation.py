"""The measured effects of an ablation are those of the logits, whichever way they are computed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import random_rollout, slow, tiny_model

from internal_policy.errors import InputError
from internal_policy.models.ablation import WRITES, ablated
from internal_policy.models.hooks import HookPoint
from internal_policy.scans import ablation, ablation_job, effects
from internal_policy.scans.ablation import Ablator, averages, targets_of
from internal_policy.scans.positions import EVERY, Positions
from internal_policy.scans.reader import reader_of

ROLLOUTS = [random_rollout(4, 9), random_rollout(3, 5, seed=1), random_rollout(6, 7, seed=2)]
MODULES = ("layer", "attn", "mlp")
ALL = [0, 1, 2]


def ablator(model, positions=EVERY, layers=ALL, replacements=("zero", "mean")) -> Ablator:
    targets = targets_of(model, layers, MODULES)
    means = averages(model, [ROLLOUTS[:2], ROLLOUTS[2:]], targets, positions)
    return Ablator.of(model, targets, replacements, means, ROLLOUTS[0].ids, positions)


def by_hand(model, rollout, point, vector) -> dict[str, float]:
    """The effects of one ablation on one rollout, from whole logits."""
    ids, start = torch.tensor([rollout.ids]), len(rollout.prompt_ids)
    with torch.no_grad():
        own = model(ids, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
        with ablated(model, point, vector):
            other = model(ids, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
    tokens = torch.tensor(rollout.response_ids)[:, None]
    found = {
        "kl": (own.exp() * (own - other)).sum(-1),
        "logprob_change": (other - own).gather(1, tokens),
        "entropy_change": (own.exp() * own).sum(-1) - (other.exp() * other).sum(-1),
        "top_changed": (own.argmax(-1) != other.argmax(-1)).double(),
    }
    return {name: float(values.mean()) for name, values in found.items()}


@pytest.mark.parametrize("family", ["gemma2", "nemotron_h", *slow("llama", "granite", "gpt_neox")])
def test_effects_are_those_of_the_logits(model):
    one = ablator(model, layers=[1])
    rows = one.effects(ROLLOUTS).to_pylist()
    assert len(rows) == 3 * len(one.targets) * 2
    for row in rows:
        target = row["layer"], row["module"]
        vector = one.averages[target] if row["replacement"] == "mean" else None
        expected = by_hand(model, ROLLOUTS[row["rollout"]], HookPoint(row["layer"], WRITES[row["module"]]), vector)
        assert {name: row[name] for name in effects.MEASURES} == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_restarting_changes_no_bit(llama):
    one = ablator(llama)
    assert one.restarts
    assert one.effects(ROLLOUTS).equals(replace(one, restarts=False).effects(ROLLOUTS))


def test_the_average_is_over_the_positions_where_response_tokens_are_predicted(llama):
    target, states = (1, "layer"), []
    for rollout in ROLLOUTS:
        hidden = llama(torch.tensor([rollout.ids]), output_hidden_states=True).hidden_states
        states.append((hidden[2] - hidden[1])[0, len(rollout.prompt_ids) - 1 : -1])
    mean = averages(llama, [ROLLOUTS], [target])[target]
    torch.testing.assert_close(mean, torch.cat(states).mean(0), rtol=1e-12, atol=1e-12)


def test_only_chosen_positions_are_measured_and_rollouts_without_any_are_left_out(llama):
    rows = ablator(llama, Positions(5, 6), layers=[1]).effects(ROLLOUTS, first=10).to_pandas()
    assert set(zip(rows["rollout"], rows["tokens"], strict=True)) == {(10, 2), (12, 2)}
    assert ablator(llama, Positions(5, 6), layers=[1]).effects(ROLLOUTS[1:2]).num_rows == 0


def test_memory_that_runs_out_halves_the_batch(llama, monkeypatch):
    one, sizes = ablator(llama, layers=[1]), []
    whole, measured = one.effects(ROLLOUTS), Ablator._effects

    def small(self, rollouts, *given):
        if len(rollouts) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return measured(self, rollouts, *given)

    monkeypatch.setattr(Ablator, "_effects", small)
    halved = one.effects(ROLLOUTS, smaller=sizes.append).sort_by([("layer", "ascending"), ("rollout", "ascending")])
    assert sizes == [2]
    assert halved.num_rows == whole.num_rows


def test_long_batches_are_read_in_pieces(llama, monkeypatch):
    one, counts = ablator(llama, layers=[1, 2]), []
    whole = one.effects(ROLLOUTS).to_pandas()
    monkeypatch.setattr(ablation, "WHOLE_BYTES", 1)
    pieces = one.effects(ROLLOUTS, advance=lambda number, _: counts.append(number)).to_pandas()
    assert counts == [1] * 6
    by = ["rollout", "layer", "module", "replacement"]
    both = [frame.set_index(by).sort_index() for frame in (whole, pieces)]
    assert (both[0] - both[1]).abs().to_numpy().max() < 1e-9


@pytest.mark.parametrize(
    ("layers", "modules", "said"),
    [([0], ["ffn"], "no module 'ffn'"), ([7], ["mlp"], "Layer 7 can't be ablated"), ([0], ["mlp"], "have no mlp")],
)
def test_what_a_model_lacks_is_refused(layers, modules, said):
    with pytest.raises(InputError, match=said):
        targets_of(tiny_model("mamba"), layers, modules)


def test_interrupted_work_continues_to_the_same_tables(llama, tmp_path, monkeypatch):
    reader, batches = reader_of(llama), [ROLLOUTS[:2], ROLLOUTS[2:]]
    targets = targets_of(llama, ALL, MODULES)

    def run(folder: Path) -> None:
        product = ablation_job.begun(folder, reader, {"scan": "x"})
        means = ablation_job.averaged(folder, reader, batches, targets, EVERY, lambda *_: None, lambda _: None)
        one = Ablator.of(reader, targets, ("mean",), means, ROLLOUTS[0].ids, matmul=product)
        ablation_job.measured(folder, one, batches, lambda *_: None, lambda _: None)

    run(tmp_path / "whole")
    measured = Ablator.effects

    def interrupted(self, rollouts, first, **given):
        if first:
            raise KeyboardInterrupt
        return measured(self, rollouts, first, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Ablator, "effects", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "twice")
    assert {path.name for path in (tmp_path / "twice").iterdir()} == {
        *("question.json", "averages.parquet", "effects-00000.parquet")
    }
    monkeypatch.setattr(ablation_job, "averages", None)  # they are in the folder
    run(tmp_path / "twice")
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "twice" / path.name).read_bytes() == path.read_bytes()
